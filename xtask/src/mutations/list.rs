//! One guard each: what is taken away, and who must see it.

use super::{Held, Mutation};

const fn capture(name: &'static str) -> Held {
    Held::Integration { package: "mesh-net", target: "capture", name }
}

/// A rule of the pod's table, taken away as it stands in `chains.rs`.
const fn rule(guard: &'static str, from: &'static str, name: &'static str) -> Mutation {
    Mutation { guard, file: "mesh-net/src/capture/rules/chains.rs", from, to: "", test: capture(name) }
}

/// A rule that is written otherwise.
const fn other(guard: &'static str, from: &'static str, to: &'static str, name: &'static str) -> Mutation {
    Mutation { guard, file: "mesh-net/src/capture/rules/chains.rs", from, to, test: capture(name) }
}

/// Somewhere in node-proxy.
const fn proxy(
    guard: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    name: &'static str,
) -> Mutation {
    Mutation { guard, file, from, to, test: Held::Program { package: "node-proxy", name } }
}

const NOBODY: &str = "owners::what_nobody_owns_is_refused_by_reset_the_same_for_used_and_unused_ports";
const FORGED: &str = "owners::a_forged_end_with_data_is_refused_and_the_connection_lives";
const CLOSED: &str = "owners::where_nobody_listens_the_proxy_is_told_at_once_whatever_marks_the_pod_has_reflected";
const SPOOF: &str = "owners::a_marked_socket_bears_no_foreign_address_out_of_the_pod_and_does_not_reach_the_proxy";
const EXCLUDED: &str = "excluded::an_excluded_port_passes_both_ways_and_lends_nothing_to_whoever_binds_it";
const FLOWS: &str = "enrolment::flows_leave_the_sets_with_their_sockets_and_a_lost_set_is_not_learned_again";
const BUSY: &str = "enrolment::a_pod_that_is_too_busy_is_left_as_it_was";
const BRIDGED: &str = "bridged::by_a_bridge_nobody_reaches_the_listener_itself_and_what_nobody_owns_is_refused";
const BOUND: &str = "owners::sockets_bound_to_an_interface_are_captured_too";
const SEEN: &str = "escape::a_process_that_sees_packets_reads_no_mark_that_exempts";
const OWN_NAT_BEFORE: &str =
    "own_nat::a_flow_from_before_that_the_pod_translates_lives_through_every_stage_and_no_longer_than_it_is_known";

pub(super) const MUTATIONS: &[Mutation] = &[
    rule(
        "what is forwarded for others is not translated",
        r#"        rule("forwarded-in", [to_others(), accept()]),
"#,
        "owners::forwarded_traffic_passes",
    ),
    rule(
        "what is forwarded for others is not refused on its way in",
        r#"    rules.push(rule("input-forwarded", [to_others(), accept()]));
"#,
        "owners::forwarded_traffic_passes",
    ),
    rule(
        "what is forwarded for others is not dropped on its way out",
        r#"        rule("leave-forwarded", [not_on(Meta::InputInterface, 0), accept()]),
"#,
        "owners::forwarded_traffic_passes",
    ),
    rule(
        "a packet to somebody's socket that is not the proxy's is refused (SYN cookies, injection)",
        r#"                rule("foreign-in", [of_any_socket(), refuse()]),
"#,
        FORGED,
    ),
    rule(
        "what nobody owns is refused",
        r#"                rule("nobody-in", [refuse()]),
"#,
        NOBODY,
    ),
    other(
        "the proxy's inner ports refuse whoever comes to them",
        "rule(name, [tcp(), to_port(port), refuse()])",
        "rule(name, [tcp(), to_port(port), accept()])",
        BRIDGED,
    ),
    other(
        "what has an owner is asked of its socket, and not of the port",
        r#"rule("ending-in", [of_transparent_socket(), accept()])"#,
        r#"rule("ending-in", [tcp(), accept()])"#,
        NOBODY,
    ),
    rule(
        "what comes back from a closed port is told at once over IPv6",
        r#"        rule("reset-of-kernel", [of_family(Family::V6), with_flow_label(), back()]),
"#,
        CLOSED,
    ),
    other(
        "what the kernel answers by itself takes over the public mark",
        "[on(Meta::OutputInterface, LOOPBACK), marked(own.value()), count(), mark(ON_LO), vec![Expr::Accept]]",
        "[on(Meta::OutputInterface, LOOPBACK), marked(own.value()), accept()]",
        CLOSED,
    ),
    rule(
        "a socket that bears a foreign address stays in the pod",
        r#"        rule("leave-spoofed", [marked(own.value()), drop()]),
"#,
        SPOOF,
    ),
    rule(
        "the proxy does not call itself",
        r#"        rule("proxy-to-itself", [to_lo, syn(), jump(TOWARDS_US)]),
"#,
        SPOOF,
    ),
    other(
        "answers of an excluded port are known by their flow, and not by their port",
        r#"rules.extend(each("excluded-out", |family| [known(family, Way::Out), in_set(family.excluded()), accept()]));
            rules.push"#,
        r#"rules.extend(each("excluded-out", |family| [known(family, Way::Out), tcp(), accept()]));
            rules.push"#,
        EXCLUDED,
    ),
    other(
        "the interface is no proof that a packet stays in the pod",
        r#"rule("to-self", [to_self(), aside(TO_SELF)])"#,
        r#"rule("to-self", [on(Meta::OutputInterface, LOOPBACK), aside(TO_SELF)])"#,
        "escape::no_mark_but_the_enrolments_own_escapes",
    ),
    other(
        "the interface is no proof that a packet leaves the pod",
        r#"rule("to-self", [to_self(), aside(TO_SELF)])"#,
        r#"rule("to-self", [on(Meta::OutputInterface, LOOPBACK), to_self(), aside(TO_SELF)])"#,
        "spoof::a_header_that_says_another_destination_than_its_route_does_not_pass_for_a_client",
    ),
    rule(
        "what is forwarded to a port of ours at somebody else is not the proxy's",
        r#"        rule("to-others", [to_about_ours(), to_others(), accept()]),
"#,
        "bridged::what_is_forwarded_reaches_others_on_the_ports_of_our_listeners",
    ),
    rule(
        "what is forwarded inside of a bridge is not dropped",
        r#"            rule("leave-bridged", [from_others(), to_others(), accept()]),
"#,
        "bridged::what_is_behind_one_bridge_of_the_pod_reaches_its_like",
    ),
    other(
        "a flow that was not learned is captured",
        r#"each("before-out", |family| [known(family, Way::Out), in_set(family.before()), accept()])"#,
        r#"each("before-out", |family| [known(family, Way::Out), tcp(), accept()])"#,
        "escape::no_mark_but_the_enrolments_own_escapes",
    ),
    other(
        "the proxy's packets come in without the mark that exempts",
        r#"rule("input-proxy", [pass_on()])"#,
        r#"rule("input-proxy", [accept()])"#,
        SEEN,
    ),
    other(
        "the proxy's packets leave without the mark that exempts",
        r#"rule("leave-proxy", [marked(own.value()), from_self(), pass_on()])"#,
        r#"rule("leave-proxy", [marked(own.value()), from_self(), accept()])"#,
        SEEN,
    ),
    other(
        "a flow from before is over when somebody opens another, and not when its own answer is sent again",
        r#"rule("begins-out", [syn(), aside(BEGUN_OUT)])"#,
        r#"rule("begins-out", [opening(), aside(BEGUN_OUT)])"#,
        "enrolment::a_handshake_that_waits_for_the_clients_first_word_lives_through_the_swap",
    ),
    other(
        "what comes to an excluded port by the proxy stays the proxy's",
        "            rules.extend(excluded::still_captured_by_proxy(exclusions));\n",
        "",
        "excluded::what_comes_to_an_excluded_port_by_the_proxy_stays_the_proxys_whoever_knows_its_numbers",
    ),
    Mutation {
        guard: "a set that a stranger added is taken away",
        file: "mesh-net/src/capture/change.rs",
        from: "old.is_named() && sets.iter()",
        to: "old.is_named() && sets.is_empty() && sets.iter()",
        test: capture("drift::a_plain_table_is_read_back_as_changed_and_repaired"),
    },
    Mutation {
        guard: "what is left of us does not use up the numbers for routing tables",
        file: "mesh-net/src/capture/routes.rs",
        from: "route.table == table && !route.like_ours",
        to: "route.table == table",
        test: capture("drift::no_number_of_lost_rules_uses_up_the_numbers_for_routing_tables"),
    },
    Mutation {
        guard: "flows leave the sets with their sockets",
        file: "mesh-net/src/capture/session.rs",
        from: "flows::take(&mut self.netfilter, set, &over)?;",
        to: "",
        test: capture(FLOWS),
    },
    Mutation {
        guard: "a set that was lost with its table is not learned again",
        file: "mesh-net/src/capture/session.rs",
        from: "None if seen.is_some() || routes::left_behind(&mut self.route)? =>",
        to: "None if seen.is_some() =>",
        test: capture(FLOWS),
    },
    Mutation {
        guard: "more flows than the bound: refused",
        file: "mesh-net/src/capture/session.rs",
        // The kernel says so too: its set is as large as the bound.
        from: r#"            let too_many = |found: usize| found > self.limit as usize;
            if too_many(flows.len()) {
                return Err(Error::TooManyFlows { found: flows.len(), limit: self.limit });
            }
            flows::put(&mut self.netfilter, set(family), &flows).map_err(|error| match error {
                // The set is full: with what rules have put there meanwhile.
                Error::Kernel { source, .. } if Errno::from_io_error(&source) == Some(Errno::NFILE) => {
                    Error::TooManyFlows { found: flows.len(), limit: self.limit }
                }
                other => other,
            })?;
"#,
        to: "let _ = flows::put(&mut self.netfilter, set(family), &flows);\n",
        test: capture(BUSY),
    },
    Mutation {
        guard: "a pod that is not captured after all is left as it was",
        file: "mesh-net/src/capture/session.rs",
        from: "                _ => self.remove(),",
        to: "                _ => Ok(()),",
        test: capture(BUSY),
    },
    Mutation {
        guard: "a socket that is bound to an interface has a route to the proxy",
        file: "mesh-net/src/capture/routes.rs",
        from: "link.is_loopback() || link.can_route(family));",
        to: "link.is_loopback());",
        test: capture(BOUND),
    },
    Mutation {
        guard: "half-closed connections are remembered",
        file: "mesh-net/src/capture/rules/chains.rs",
        from: "rule(\"capture-in\", [syn(), timeouts(), land()])",
        to: "rule(\"capture-in\", [syn(), land()])",
        test: capture("owners::half_closed_connections_are_remembered_and_what_conntrack_forgets_ends_by_reset"),
    },
    other(
        "an answer that is translated back only later belongs to a flow from before",
        r#"                [not_syn(), translated_answer(family), in_set(family.before()), accept()]
"#,
        r#"                [not_syn(), known(family, Way::In), in_set(family.before()), accept()]
"#,
        OWN_NAT_BEFORE,
    ),
    other(
        "an answer that is translated is no pass without a flow that passes",
        "[not_syn(), translated_answer(family), in_set(family.before()), accept()]",
        "[not_syn(), translated_answer(family), vec![], accept()]",
        OWN_NAT_BEFORE,
    ),
    other(
        "an answer that is translated back only later belongs to what a pod excludes",
        "[not_syn(), translated_answer(family), in_set(family.excluded()), accept()]",
        "[not_syn(), known(family, Way::In), in_set(family.excluded()), accept()]",
        "own_nat::a_flow_to_an_excluded_port_that_the_pod_translates_passes_there_and_back",
    ),
    Mutation {
        guard: "the number of the routing table is nobody's",
        file: "mesh-net/src/capture/routes.rs",
        from: "let free = || ROUTE_TABLES.into_iter().find(|table| !others(*table));",
        to: "let free = || ROUTE_TABLES.into_iter().max_by_key(|table| others(*table));",
        test: capture("owners::routing_tables_and_rules_of_others_are_left_alone"),
    },
    Mutation {
        guard: "what a pod believes of its node is permanent",
        file: "mesh-net/src/capture/neighbours.rs",
        from: "const PERMANENT: u16 = 0x80;",
        to: "const PERMANENT: u16 = 0x04;",
        test: capture("neighbours::a_captured_pod_does_not_believe_a_neighbour_that_says_it_is_the_node"),
    },
    Mutation {
        guard: "a gateway that is another machine is not taken for the node",
        file: "mesh-net/src/capture/neighbours.rs",
        from: "&& !towards(node, gateway)?.is_some_and(|route| route.is_local)",
        to: "&& !towards(node, gateway)?.is_some()",
        test: capture("neighbours::a_gateway_that_is_another_machine_is_left_alone"),
    },
    Mutation {
        guard: "link-local destinations meet their own socket",
        file: "mesh-net/src/capture/rules/excluded.rs",
        from: "[0xfe80, 0xffc0]",
        to: "[0xfec0, 0xffc0]",
        test: capture("owners::link_local_destinations_are_captured_and_reached_both_ways"),
    },
    rule(
        "what the release before translated is translated back, marked or not",
        r#"        rule("proxy-former", [tcp(), from_port(OUTBOUND), accept()]),
"#,
        "upgrade::rules_of_the_release_before_give_way_and_no_connection_is_cut",
    ),
    Mutation {
        guard: "rules of the release before stay while a worker of it accepts",
        file: "pod-watcher/src/sandbox.rs",
        from: "let may = listeners && !self.kernel.former_serves.load(Ordering::Relaxed);",
        to: "let may = listeners;",
        test: Held::Integration {
            package: "pod-watcher",
            target: "former",
            name: "rules_of_the_release_before_give_way_when_its_keeper_leaves_and_no_sooner",
        },
    },
    Mutation {
        guard: "flows of the release before keep their translation",
        file: "mesh-net/src/capture/session.rs",
        from: "if self.former && spec.stage == Stage::Redirect && before == Some(Stage::Redirect) {",
        to: "if false {",
        test: capture("upgrade::rules_of_the_release_before_give_way_and_no_connection_is_cut"),
    },
    Mutation {
        guard: "what comes by a bridge of the pod's own is not steered",
        file: "mesh-net/src/capture/rules/chains.rs",
        from: "rule(\"capture-bridged\", [by_bridge(), syn(), timeouts(), land_at_listener()])",
        to: "rule(\"capture-bridged\", [by_bridge(), syn(), timeouts(), land()])",
        test: capture("bridged::what_comes_by_a_bridge_ends_at_the_proxy_and_so_do_the_answers"),
    },
    Mutation {
        guard: "by a bridge, only what was translated reaches the listener",
        file: "mesh-net/src/capture/rules/chains.rs",
        from: "[by_bridge(), translated(), tcp(), to_port(INBOUND), accept()]",
        to: "[by_bridge(), tcp(), to_port(INBOUND), accept()]",
        test: capture("bridged::by_a_bridge_nobody_reaches_the_listener_by_what_is_left_of_a_connection"),
    },
    Mutation {
        guard: "the application's end of a connection of the release before is captured, and no flow from before",
        file: "mesh-net/src/capture/session.rs",
        from: "own.map(Flow::of).filter(|flow| !proxied(flow)).collect();",
        to: "own.map(Flow::of).collect();",
        test: capture("upgrade::rules_of_the_release_before_give_way_and_no_connection_is_cut"),
    },
    Mutation {
        guard: "what leaves the proxy needs no entry of conntrack",
        file: "mesh-net/src/capture/rules/chains.rs",
        from: "rule(\"proxy-out\", [count(), untracked()])",
        to: "rule(\"proxy-out\", [accept()])",
        test: capture("conntrack::connections_of_the_proxys_own_and_captured_ones_on_the_way_out_have_no_entry"),
    },
    Mutation {
        guard: "a socket whose far end has not answered proves no probe",
        file: "mesh-net/src/diag.rs",
        from: "[TCP_SYN_SENT, TCP_SYN_RECV, TCP_NEW_SYN_RECV, TCP_CLOSE, TCP_LISTEN].contains",
        to: "[TCP_LISTEN].contains",
        test: capture("owners::a_socket_whose_far_end_has_not_answered_proves_nothing"),
    },
    proxy(
        "what came before a reset is passed on first",
        "node-proxy/src/worker/copy.rs",
        "        self.last = Some(LastBytes { from: side, until, looks: 0 });\n",
        "",
        "worker::tests::the_last_bytes_before_a_reset_arrive_through_a_tunnel_and_between_two_pods_of_a_node",
    ),
    proxy(
        "a reset behind a full pipe is heard",
        "node-proxy/src/worker/copy.rs",
        "if self.up.is_not_reading()",
        "if false",
        "worker::tests::a_caller_that_resets_behind_a_full_pipe_is_heard_within_a_second_through_a_tunnel_and_on_one_node",
    ),
    proxy(
        "a reset of a stream is no end of data",
        "node-proxy/src/worker/tunnel/stream.rs",
        "tells of the end and not of the reset.\n                Some(Err(error)) => return Poll::Ready(Err(closed(&error))),",
        "tells of the end and not of the reset.\n                Some(Err(_)) => self.received_end = true,",
        "worker::tunnel::tests::exchange::a_reset_before_the_end_is_no_end_of_data_whatever_its_code",
    ),
    proxy(
        "a reset waits for what HTTP/2 still holds",
        "node-proxy/src/worker/tunnel/stream.rs",
        "        self.queue.poll_empty(cx)\n",
        "        let _ = cx;\n        Poll::Ready(())\n",
        "worker::tunnel::tests::exchange::what_was_written_before_a_reset_arrives_a_thousand_times_of_a_thousand",
    ),
    proxy(
        "a peer that owes an acknowledgement for too long is given up",
        "node-proxy/src/worker/silence.rs",
        "None | Some(Duration::ZERO) => Verdict::Lost,",
        "None | Some(Duration::ZERO) => Verdict::Wait(LOOK, true),",
        "worker::silence::tests::a_peer_is_lost_when_it_has_owed_an_acknowledgement_for_as_long_as_keepalive_waits",
    ),
    proxy(
        "a peer that does not read is not given up",
        "node-proxy/src/worker/silence.rs",
        "if probes >= keepalive.count && silent",
        "if silent",
        "worker::silence::tests::a_peer_that_does_not_read_is_not_lost_as_long_as_it_answers_probes",
    ),
    proxy(
        "an older last good configuration is not believed",
        "node-proxy/src/worker/xds/client.rs",
        "if !floor.admits(saved.counter) {",
        "if false {",
        "worker::xds::tests::a_file_older_than_one_that_the_node_has_had_is_not_believed",
    ),
    proxy(
        "a tunnel leads to the address that it was made to",
        "node-proxy/src/worker/identify.rs",
        "if destination.ip().to_canonical() != at.to_canonical() {",
        "if false {",
        "worker::identify::tests::a_tunnel_leads_to_the_address_that_it_was_made_to_and_to_no_other_of_the_pod",
    ),
    proxy(
        "a caller has its pod's own address, whatever it bound",
        "node-proxy/src/worker/identify.rs",
        "    let client = from_its_own(pod, client)?;\n",
        "",
        "worker::identify::tests::outbound_comes_from_the_pods_own_address_whatever_it_bound",
    ),
    proxy(
        "endpoints that come to their end serve while there is none that is ready",
        "node-proxy/src/worker/route/endpoints.rs",
        "Readiness::Ending => true,",
        "Readiness::Ending => continue,",
        "worker::route::tests::endpoints_that_come_to_their_end_serve_while_there_is_none_that_is_ready",
    ),
    proxy(
        "a client stays with its endpoint",
        "node-proxy/src/worker/sessions.rs",
        "(Some(at), Some(stay)) if now < stay.until => at,",
        "(Some(at), Some(stay)) if now < stay.until => (at + 1) % endpoints.len(),",
        "worker::route::tests::a_client_of_a_service_with_session_affinity_is_led_to_one_endpoint_and_another_one_when_that_is_gone",
    ),
    proxy(
        "a worker cannot leap to the end of the counter",
        "node-proxy/src/keeper/highest.rs",
        "counter > self.highest && counter - self.highest <= LEAP && !soon",
        "counter > self.highest && !soon",
        "keeper::highest::tests::a_worker_can_neither_use_the_counter_up_nor_raise_it_all_the_time",
    ),
];
