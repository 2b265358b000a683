//! What strangers do to the rules, what is left of it, and what is found and repaired.

use std::net::SocketAddr;

use mesh_net::capture::{Mode, Session, Stage};

use crate::bed::{Bed, accept, assert_talks, assert_untouched, dial, listen, pod, spec, try_sh, world};

#[test]
fn an_owned_table_outlives_flush_and_delete_by_others() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    bed.pod_sh("nft flush ruleset");
    for attempt in [
        "nft delete table inet culvert",
        "nft flush table inet culvert",
        "nft flush chain inet culvert output_route",
        "nft insert rule inet culvert output_route accept",
        "nft add table inet culvert '{ flags dormant; }'",
    ] {
        let (worked, said) = try_sh(&bed.pod, attempt);
        assert!(!worked, "{attempt}: {said}");
    }
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
}

#[test]
fn a_restarted_owner_takes_over_with_flows_counters_and_mark() {
    let bed = Bed::new();
    let mut first = bed.applied(Mode::Owned, Stage::Redirect);
    let inbound = listen(&bed.pod, 15006);
    let mut dialled = dial(&bed.world, SocketAddr::new(pod(0), 8080)).unwrap();
    let (mut captured, _) = accept(&inbound);
    let before = first.counters().unwrap()["capture-in"];
    assert_eq!(before.0, 1);
    drop(first);
    assert_talks(&mut dialled, &mut captured);

    let mut second = bed.session(Mode::Owned);
    assert!(!try_sh(&bed.pod, "nft delete table inet culvert").0, "it is owned again");
    let found = second.read().unwrap().unwrap();
    assert_eq!((found.spec, found.drift), (Some(spec(Stage::Redirect)), vec![]));
    assert_eq!(second.counters().unwrap()["capture-in"], before);
    assert_talks(&mut dialled, &mut captured);
}

#[test]
fn a_replaced_rule_goes_on_counting() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let _inbound = listen(&bed.pod, 15006);
    let _dialled = dial(&bed.world, SocketAddr::new(pod(0), 8080)).unwrap();
    let before = session.counters().unwrap()["capture-in"];
    bed.pod_sh("nft insert rule inet culvert prerouting_nat accept");
    session.apply(&spec(Stage::Redirect)).unwrap();
    assert_eq!(session.counters().unwrap()["capture-in"], before);
}

/// What a stranger does to a plain table, and what is then found.
pub const TAMPERING: &[(&str, &str)] = &[
    ("nft delete table inet culvert", "table inet culvert is missing"),
    ("nft flush ruleset", "table inet culvert is missing"),
    ("nft flush chain inet culvert output_route", "rule \"not-tcp\" of chain output_route is missing"),
    (
        "nft delete rule inet culvert output_route handle \
         $(nft -a list chain inet culvert output_route | sed -n 's/.*capture-out.*handle //p')",
        "rule \"capture-out\" of chain output_route is missing",
    ),
    (
        "nft insert rule inet culvert prerouting_nat accept",
        "rule (accept) was added to chain prerouting_nat before \"loopback-in\"",
    ),
    (
        "nft insert rule inet culvert output_route ip daddr 10.0.0.0/8 tcp dport 22 return",
        "rule (meta nfproto ipv4 @nh,128,8 0x0a meta l4proto tcp th dport 22 return) was added to chain \
         output_route before \"not-tcp\"",
    ),
    (
        "nft replace rule inet culvert output_route handle \
         $(nft -a list chain inet culvert output_route | sed -n 's/.*capture-out.*handle //p') \
         tcp flags '& (fin|syn|rst|ack) == syn' counter accept comment '\"capture-out\"'",
        "rule \"capture-out\" of chain output_route was changed",
    ),
    (
        "nft add chain inet culvert postrouting_filter '{ policy drop; }'",
        "chain postrouting_filter has another hook, priority or policy",
    ),
    ("nft add chain inet culvert extra", "chain extra was added"),
    (
        "nft add chain inet culvert extra; nft add rule inet culvert extra tcp dport '{ 22, 80 }' accept; \
         nft insert rule inet culvert output_route jump extra",
        "chain extra was added",
    ),
    ("nft add set inet culvert extra '{ type ipv4_addr; }'", "set extra was added"),
    (
        "nft add set inet culvert extra '{ type ipv4_addr; }'; \
         nft insert rule inet culvert output_route ip daddr @extra accept",
        "set extra was added",
    ),
    ("nft add table inet culvert '{ flags dormant; }'", "table inet culvert has flags 0x1"),
    ("ip rule del pref 100", "the ipv4 ip rule of what is captured is missing or changed"),
    ("ip -6 rule del pref 100", "the ipv6 ip rule of what is captured is missing or changed"),
    (
        "ip rule del pref 100; ip rule add pref 100 fwmark 0xc71002/0x7fffffff lookup main",
        "another ipv4 ip rule (priority 100) stands beside ours",
    ),
    ("ip -6 rule add pref 50 fwmark 0xc71002 lookup main", "another ipv6 ip rule (priority 50) stands beside ours"),
    ("ip rule del pref 101", "the ipv4 ip rule of sockets bound to lo is missing or changed"),
    (
        "ip -6 rule del pref 101; ip -6 rule add pref 101 oif lo lookup main",
        "the ipv6 ip rule of sockets bound to lo is missing or changed",
    ),
    ("ip route flush table 15001100", "the ipv4 route of the mesh's table by lo is missing or changed"),
    (
        "ip -6 route del local default dev lo table 15001100",
        "the ipv6 route of the mesh's table by lo is missing or changed",
    ),
    (
        "ip route replace unreachable default table 15001100",
        "the ipv4 route of the mesh's table by lo is missing or changed",
    ),
];

#[test]
fn a_plain_table_is_read_back_as_changed_and_repaired() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let golden = session.render().unwrap();
    for (script, expected) in TAMPERING {
        bed.pod_sh(script);
        let drift: Vec<String> = session.read().unwrap().unwrap().drift.iter().map(ToString::to_string).collect();
        assert!(drift.iter().any(|line| line == expected), "{script}: {drift:?}");
        session.apply(&spec(Stage::Redirect)).unwrap_or_else(|error| panic!("{script}: {error:?}"));
        assert_eq!(session.read().unwrap().unwrap().drift, vec![], "{script}");
        assert_eq!(session.render().unwrap(), golden, "{script}");
    }
}

#[test]
fn as_many_rules_as_a_stranger_likes_to_add_are_taken_out() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let golden = session.render().unwrap();
    for chain in ["prerouting_nat", "output_route"] {
        bed.pod_sh(&format!(
            "(for n in $(seq 4000); do echo add rule inet culvert {chain} counter accept; done) | nft -f -"
        ));
        session.apply(&spec(Stage::Redirect)).unwrap();
        assert_eq!(session.render().unwrap(), golden, "{chain}");
    }
}

#[test]
fn no_number_of_lost_rules_uses_up_the_numbers_for_routing_tables() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let golden = session.render().unwrap();
    for round in 0..20 {
        bed.pod_sh("for f in -4 -6; do ip $f rule del pref 100; done");
        if round % 2 == 0 {
            bed.pod_sh("for f in -4 -6; do ip $f rule del pref 101; done");
        }
        session.apply(&spec(Stage::Redirect)).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert_eq!(session.render().unwrap(), golden, "round {round}");
    }
    session.remove().unwrap();
    assert_eq!(
        bed.pod_sh("ip route show table 15001100 2>/dev/null; ip -6 route show table 15001100 2>/dev/null; true"),
        ""
    );
}

#[test]
fn a_watcher_that_starts_after_the_change_finds_it_too() {
    for (script, expected) in
        TAMPERING.iter().filter(|(_, expected)| !expected.contains("is missing") || expected.contains("rule \""))
    {
        let bed = Bed::new();
        drop(bed.applied(Mode::Plain, Stage::Redirect));
        bed.pod_sh(script);
        let mut later = Session::open(&bed.pod, Mode::Plain).unwrap();
        let found = later.read().unwrap().unwrap();
        let drift: Vec<String> = found.drift.iter().map(ToString::to_string).collect();
        assert_eq!(found.spec, Some(spec(Stage::Redirect)), "{script}");
        assert!(drift.iter().any(|line| line == expected), "{script}: {drift:?}");
    }
}

#[test]
fn a_table_that_cannot_be_understood_is_said_to_be_so_and_replaced() {
    let bed = Bed::new();
    bed.pod_sh(
        "nft add table inet culvert; nft add chain inet culvert output '{ type filter hook output priority 5; }'",
    );
    let mut session = bed.session(Mode::Plain);
    let found = session.read().unwrap().unwrap();
    assert_eq!(found.spec, None);
    session.apply(&spec(Stage::Redirect)).unwrap();
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
}

#[test]
fn connections_stay_captured_while_a_stranger_tampers_and_the_watcher_repairs() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let (inbound, outbound) = (listen(&bed.pod, 15006), listen(&bed.pod, 15001));
    let (app, far) = (listen(&bed.pod, 8080), listen(&bed.world, 8080));
    for (script, _) in TAMPERING {
        bed.pod_sh(script);
        session.apply(&spec(Stage::Redirect)).unwrap();
        for family in [0, 1] {
            let mut dialled = dial(&bed.world, SocketAddr::new(pod(family), 8080)).unwrap();
            assert_talks(&mut dialled, &mut accept(&inbound).0);
            let mut dialled = dial(&bed.pod, SocketAddr::new(world(family), 8080)).unwrap();
            assert_talks(&mut dialled, &mut accept(&outbound).0);
        }
    }
    assert_untouched(&app, "inbound");
    assert_untouched(&far, "outbound");
}
