//! What the table holds in each stage: a pure function of the [`Spec`] and of what the pod excludes.
//!
//! The matches are on SYN packets (`fin|syn|rst|ack` of which only `syn`): conntrack sees a flow from before as new when it meets
//! it for the first time, so a rule on its state would break that flow.
//!
//! **Two lines.** The nat chains redirect; the filter chains behind them refuse a SYN that arrives without having been redirected.
//! That second line is not decoration. The nat chains are asked only about packets that open a conntrack entry. Where an entry
//! without translation is left over from a connection before the redirect (reset by its server, or half open), a SYN with the
//! same addresses passes the nat hook unasked (seen: it reached the application, IPv4 and IPv6, in and out). The second line also
//! closes the moment in which a packet meets one hook before and the next hook after a change from deny to redirect.
//!
//! **Landing ports.** What comes in is redirected to one of [`mesh_model::ports::LANDING`], and from there steered to the one listener, which is
//! transparent. With a single port, two connections from one source port to two ports of the pod would be answered with the same
//! four numbers: conntrack then gives the later one another source port, and whoever looks at that (the proof that a kubelet
//! dials, the access log, the application) is deceived. Nobody listens on a landing port: not steered is refused.
//!
//! **What exempts.** Only the enrolment's mark, and a destination that is an address of the pod itself. The latter is asked of the
//! local table (`fib daddr type`), not told by the outgoing interface: a process that sets [`FWMARK`] makes table 100 answer
//! "lo" for every destination.
//!
//! **What a pod excludes** ([`Exclusions`]) passes both lines in [`Stage::Redirect`], by rules of its own that count. It is no part of
//! the [`Spec`], which is read back from the table: what stands in a table that somebody else could write says nothing about what the
//! pod asked for.
//!
//! **Towards the application.** The proxy connects to the application with the client's own address. Its packets run over `lo`
//! with the mark; they get a conntrack zone of their own (else they would be taken for the client's own connection, which has
//! the same four numbers), and the connection a mark. The application's answers carry that connection mark: they get
//! [`FWMARK`], and table 100 brings them back to `lo` instead of sending them to the client.

mod excluded;
mod parts;

use mesh_model::ports::{INBOUND, OUTBOUND, TUNNEL};
use mesh_model::{Exclusions, Mark};

use self::parts::{
    TCP, UDP, accept, bits, equal, land, landed, marked, on, redirect, refuse, steer, syn, tcp_but_not_syn, to_port,
    to_self, transport,
};
use super::expr::{Count, Ct, Expr, Meta};
use super::{Spec, Stage};

pub(super) use self::excluded::is_exclusion;

/// Name of the table (family inet).
pub const TABLE: &str = "culvert";
/// Connection mark of the proxy's connections towards the application. Any process of the pod can read it
/// (`/proc/net/nf_conntrack`); it exempts nothing.
pub const CONNMARK: u32 = 0x00c7_1001;
/// Packet mark of the application's answers on them, and of the ip rule. Any process of the pod can read it (`ip rule`); it
/// exempts nothing.
pub const FWMARK: u32 = 0x00c7_1002;

/// Version of what is below: a table with another one is replaced as a whole.
pub(super) const SCHEMA: u32 = 2;
/// A chain without a hook. Its one rule carries stage and generation as comment: the table's own user data cannot be changed
/// after its creation (`nf_tables_updtable`), and creating it anew would leave a moment without rules.
pub(super) const ABOUT: &str = "about";

/// `LOOPBACK_IFINDEX`: `lo` has this number in every netns, whatever it is renamed to.
const LOOPBACK: u32 = 1;
/// `IP_CT_DIR_REPLY`.
const REPLY: u8 = 1;
/// The conntrack zone of connections towards the application.
const ZONE: u16 = 1;

/// A chain as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Rule>,
}

/// Where a chain is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// "filter", "nat" or "route".
    pub(super) kind: String,
    /// `NF_INET_*`.
    pub(super) number: u32,
    pub(super) priority: i32,
}

/// A rule; its name is its comment in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) exprs: Vec<Expr>,
}

/// The comment of the table.
pub(super) fn table_comment() -> String {
    format!("culvert schema {SCHEMA}")
}

/// The comment that says what the table is.
pub(super) fn about(spec: &Spec) -> String {
    format!("stage={} generation={}", stage_name(spec.stage), spec.generation)
}

/// Reads the comment of [`about`].
pub(super) fn parse_about(comment: &str) -> Option<(Stage, u64)> {
    let (stage, generation) = comment.strip_prefix("stage=")?.split_once(" generation=")?;
    let stage = [Stage::Deny, Stage::Redirect, Stage::Drain].into_iter().find(|known| stage_name(*known) == stage)?;
    Some((stage, generation.parse().ok()?))
}

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Deny => "deny",
        Stage::Redirect => "redirect",
        Stage::Drain => "drain",
    }
}

/// Everything that the table should hold, in the order in which a packet meets it.
pub(super) fn prescribe(spec: &Spec, exclusions: &Exclusions) -> Vec<Chain> {
    let hook = |kind: &str, number, priority| Some(Hook { kind: kind.to_owned(), number, priority });
    vec![
        Chain { name: ABOUT, hook: None, rules: vec![rule(about(spec), [vec![Expr::counter()]])] },
        Chain { name: "prerouting_nat", hook: hook("nat", 0, -100), rules: prerouting_nat(spec, exclusions) },
        // Between the translation of destinations (-100) and the choice of a route.
        Chain { name: "prerouting_filter", hook: hook("filter", 0, -50), rules: prerouting_filter(spec, exclusions) },
        Chain { name: "output_raw", hook: hook("filter", 3, -300), rules: zone(spec) },
        Chain { name: "output_mangle", hook: hook("route", 3, -150), rules: marks(spec) },
        Chain { name: "output_nat", hook: hook("nat", 3, -100), rules: output_nat(spec, exclusions) },
        Chain { name: "output_filter", hook: hook("filter", 3, 0), rules: output(spec, exclusions) },
    ]
}

fn prerouting_nat(spec: &Spec, exclusions: &Exclusions) -> Vec<Rule> {
    match spec.stage {
        Stage::Redirect => {
            let mut rules = vec![
                rule("loopback-in", [on(Meta::InputInterface, LOOPBACK), accept()]),
                rule("tunnel-in", [syn(), to_port(TUNNEL), accept()]),
            ];
            rules.extend(excluded::inbound(excluded::REDIRECT_IN, exclusions));
            rules.push(rule("capture-in", [syn(), land()]));
            rules
        }
        Stage::Deny | Stage::Drain => Vec::new(),
    }
}

fn output_nat(spec: &Spec, exclusions: &Exclusions) -> Vec<Rule> {
    match spec.stage {
        Stage::Redirect => {
            let mut rules =
                vec![rule("proxy-out", [marked(spec.mark), accept()]), rule("local-out", [to_self(), accept()])];
            rules.extend(excluded::outbound(excluded::REDIRECT_OUT, exclusions));
            rules.push(rule("capture-out", [syn(), redirect(OUTBOUND)]));
            rules
        }
        Stage::Deny | Stage::Drain => Vec::new(),
    }
}

fn prerouting_filter(spec: &Spec, exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules = vec![rule("input-loopback", [on(Meta::InputInterface, LOOPBACK), accept()])];
    if spec.stage == Stage::Redirect {
        // Every packet: the last one of a handshake by SYN cookie belongs to no socket yet.
        rules.push(rule("input-captured", [landed(), steer(INBOUND), accept()]));
    }
    rules.extend([
        rule("input-flow", [tcp_but_not_syn(), accept()]),
        rule("input-udp", [transport(true, UDP), accept()]),
        rule("input-other", [transport(false, TCP), accept()]),
    ]);
    match spec.stage {
        Stage::Deny => rules.push(rule("deny-in", [syn(), refuse()])),
        Stage::Redirect => {
            rules.push(rule("input-tunnel", [syn(), to_port(TUNNEL), accept()]));
            rules.extend(excluded::inbound(excluded::REFUSE_IN, exclusions));
            rules.push(rule("uncaptured-in", [syn(), refuse()]));
        }
        Stage::Drain => {}
    }
    rules
}

fn output(spec: &Spec, exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules = vec![
        rule("output-flow", [tcp_but_not_syn(), accept()]),
        // Not for TCP: a SYN with FWMARK leaves by lo wherever it goes to.
        rule("output-loopback", [on(Meta::OutputInterface, LOOPBACK), transport(false, TCP), accept()]),
        rule("output-udp", [transport(true, UDP), accept()]),
        rule("output-other", [transport(false, TCP), accept()]),
        rule("output-proxy", [marked(spec.mark), accept()]),
        rule("output-local", [to_self(), accept()]),
    ];
    match spec.stage {
        Stage::Deny => rules.push(rule("deny-out", [syn(), refuse()])),
        Stage::Redirect => {
            rules.extend(excluded::outbound(excluded::REFUSE_OUT, exclusions));
            // What was captured has the pod's own loopback address as destination by now.
            rules.push(rule("uncaptured-out", [syn(), refuse()]));
        }
        Stage::Drain => {}
    }
    rules
}

fn zone(spec: &Spec) -> Vec<Rule> {
    let set = vec![Expr::Load(ZONE.to_ne_bytes().to_vec()), Expr::SetOriginalZone];
    vec![rule("zone-towards-app", [on(Meta::OutputInterface, LOOPBACK), marked(spec.mark), vec![Expr::counter()], set])]
}

fn marks(spec: &Spec) -> Vec<Rule> {
    let replace = |load, value, set| vec![load, bits(!Mark::MASK, value), set];
    vec![
        rule(
            "mark-towards-app",
            [
                on(Meta::OutputInterface, LOOPBACK),
                marked(spec.mark),
                vec![Expr::counter()],
                replace(Expr::Ct(Ct::Mark), CONNMARK, Expr::SetCtMark),
            ],
        ),
        rule(
            "mark-reply",
            [
                vec![Expr::Ct(Ct::Mark), bits(Mark::MASK, 0), equal(&CONNMARK.to_ne_bytes())],
                // Only answers: a connection cannot be opened with it.
                vec![Expr::Ct(Ct::Direction), equal(&[REPLY]), Expr::counter()],
                replace(Expr::Meta(Meta::Mark), FWMARK, Expr::SetMark),
            ],
        ),
    ]
}

fn rule<const N: usize>(name: impl Into<String>, parts: [Vec<Expr>; N]) -> Rule {
    Rule { name: name.into(), exprs: parts.concat() }
}

/// The marks that rules compare the packet's mark with.
pub(super) fn marks_in(exprs: &[Expr]) -> impl Iterator<Item = u32> + '_ {
    exprs.windows(3).filter_map(|window| match window {
        [Expr::Meta(Meta::Mark), mask, Expr::Cmp { equal: true, value }] if *mask == bits(Mark::MASK, 0) => {
            value.as_slice().try_into().ok().map(u32::from_ne_bytes)
        }
        _ => None,
    })
}

/// What the rule counted.
pub(super) fn count(exprs: &[Expr]) -> Option<Count> {
    exprs.iter().find_map(|expr| if let Expr::Counter(count) = expr { Some(*count) } else { None })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const STAGES: [Stage; 3] = [Stage::Deny, Stage::Redirect, Stage::Drain];

    fn spec(stage: Stage) -> Spec {
        Spec { stage, mark: Mark::from_random(0x1234_5678).expect("not reserved"), generation: 7 }
    }

    fn excluded() -> Exclusions {
        let mut exclusions = Exclusions::default();
        exclusions.inbound_ports.extend([9090, 5432]);
        exclusions.outbound_ports.insert(5432);
        let ranges = ["10.0.0.0/8", "192.0.2.7/32", "0.0.0.0/0", "::/0", "fd00::/8"];
        for range in ranges {
            exclusions.outbound_ranges.insert(range.parse().expect("a range"));
        }
        exclusions
    }

    #[test]
    fn every_rule_counts_and_has_a_name_of_its_own() {
        for stage in STAGES {
            let rules: Vec<_> =
                prescribe(&spec(stage), &excluded()).into_iter().flat_map(|chain| chain.rules).collect();
            let names: BTreeSet<_> = rules.iter().map(|rule| &rule.name).collect();
            assert_eq!(names.len(), rules.len());
            assert!(rules.iter().all(|rule| count(&rule.exprs).is_some()));
        }
    }

    #[test]
    fn every_redirect_and_refusal_matches_only_syn() {
        for rule in
            STAGES.into_iter().flat_map(|stage| prescribe(&spec(stage), &excluded())).flat_map(|chain| chain.rules)
        {
            if rule.exprs.iter().any(|expr| matches!(expr, Expr::Redirect | Expr::RedirectRange | Expr::Reset)) {
                assert_eq!(rule.exprs[..syn().len()], syn(), "{}", rule.name);
            }
        }
    }

    #[test]
    fn public_marks_are_compared_with_nowhere_but_in_the_answers_rule() {
        for stage in STAGES {
            for rule in prescribe(&spec(stage), &excluded()).into_iter().flat_map(|chain| chain.rules) {
                assert!(marks_in(&rule.exprs).all(|mark| mark == spec(stage).mark.value()), "{}", rule.name);
            }
        }
    }

    #[test]
    fn the_mark_can_be_learned_in_every_stage() {
        for stage in STAGES {
            let chains = prescribe(&spec(stage), &excluded());
            assert!(chains.iter().flat_map(|chain| &chain.rules).any(|rule| marks_in(&rule.exprs).next().is_some()));
        }
    }

    #[test]
    fn what_is_excluded_passes_both_lines_while_capture_is_on_and_nothing_more_does() {
        let names = |stage, exclusions: &Exclusions| -> BTreeSet<String> {
            prescribe(&spec(stage), exclusions)
                .into_iter()
                .flat_map(|chain| chain.rules)
                .map(|rule| rule.name)
                .collect()
        };
        for stage in STAGES {
            let more: Vec<String> =
                names(stage, &excluded()).difference(&names(stage, &Exclusions::default())).cloned().collect();
            // A port or a range has a rule in each of two chains.
            let expected = if stage == Stage::Redirect { 2 * (2 + 1 + 5) } else { 0 };
            assert_eq!(more.len(), expected, "{more:?}");
            assert!(more.iter().all(|name| is_exclusion(name)));
            assert!(!names(stage, &Exclusions::default()).iter().any(|name| is_exclusion(name)));
        }
    }

    #[test]
    fn stage_and_generation_are_read_back() {
        for stage in STAGES {
            assert_eq!(parse_about(&about(&spec(stage))), Some((stage, 7)));
        }
        for wrong in ["", "stage=deny", "stage=open generation=1", "stage=deny generation=x"] {
            assert_eq!(parse_about(wrong), None, "{wrong}");
        }
    }
}
