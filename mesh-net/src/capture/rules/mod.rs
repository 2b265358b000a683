//! What the table holds in each stage: a pure function of the [`Spec`] and of what the pod excludes.
//!
//! **Every TCP packet has an owner.** Past the proxy goes a packet of the proxy's own sockets, of a flow that passes (from before the
//! enrolment, or excluded by the pod), and what is forwarded for others. Everything else is the proxy's, or is refused by a reset
//! towards both sides. It is never enough that a packet is no SYN: conntrack forgets (60 s after one side has ended), calls a RST of
//! odd numbers invalid, and never sees a connection that a SYN cookie makes; each of the three was used to get in. So nothing here
//! asks conntrack who owns a packet (decision 0016).
//!
//! **Out, and the application's answers** (`output_route`): a packet of a socket without our mark, to an address that is not the
//! pod's, gets [`FWMARK`]; a routing table of our own leads it to `lo`, and there it goes to the proxy's socket that has these four
//! numbers, else to the listener ([`Expr::Steer`]). No translation: the accepted socket's own address is the destination.
//!
//! **In** (`prerouting_nat`, `prerouting_filter`): a connection that begins is translated to one of [`mesh_model::ports::LANDING`] and
//! from there steered to the one listener. With a single port, two connections from one source port to two ports of the pod would
//! be answered with the same four numbers; without any translation the proxy's and the application's socket would have the same
//! (decision 0012). What comes by a bridge inside the pod is translated to the listener itself: with br_netfilter nothing that is
//! steered stays so. What conntrack has forgotten finds no translation, and is refused.
//!
//! **What exempts.** Only the enrolment's mark, which is a secret and stands on sockets that the keeper made; and a destination that is
//! an address of the pod itself. The latter is asked of the local table (`fib daddr type`), not told by the outgoing interface: a
//! process that sets [`FWMARK`] makes our routing table answer "lo" for every destination.
//!
//! **What it costs.** A chain that is asked costs a packet some 100 ns and each rule some 20 more (decision 0016). So each kind of packet is
//! sent aside at the head of a chain, to where its rules stand together, and walks past those of others no more.
//!
//! **What a pod excludes** ([`Exclusions`]) is no part of the [`Spec`], which is read back from the table: what stands in a table that
//! somebody else could write says nothing about what the pod asked for.

mod chains;
mod excluded;
mod parts;

use mesh_model::{Exclusions, Mark};

use self::parts::bits;
use super::expr::{Count, Expr, Meta};
use super::{Spec, Stage};

pub(super) use self::excluded::is_exclusion;

/// Name of the table (family inet).
pub const TABLE: &str = "culvert";
/// Packet mark of what is captured on its way out, and of the ip rule. Any process of the pod can read it (`ip rule`); it exempts
/// nothing.
pub const FWMARK: u32 = 0x00c7_1002;
/// Packet mark of what the proxy sends to an application of the pod, while it is on `lo`. No secret either: outside of `lo` no rule knows
/// it, and there only what is the pod's own comes without being refused.
pub const ON_LO: u32 = 0x00c7_1003;

/// Whether this is a packet mark that anybody may read: it cannot be an enrolment's.
pub const fn is_public(mark: u32) -> bool {
    mark == FWMARK || mark == ON_LO
}

/// Version of what is below: a table with another one is replaced as a whole.
pub(super) const SCHEMA: u32 = 3;
/// A chain without a hook. Its one rule carries stage and generation as comment: the table's own user data cannot be changed
/// after its creation (`nf_tables_updtable`), and creating it anew would leave a moment without rules.
pub(super) const ABOUT: &str = "about";
/// What leaves a socket.
pub(super) const OUTPUT: &str = "output_route";
/// Chains without a hook that others jump to.
const REFUSE: &str = "refuse";
const RESETS: &str = "resets";
const TOWARDS_US: &str = "towards_us";
const FROM_LO: &str = "from_lo";
const BEGUN_IN: &str = "begun_in";
const PROXY_IN: &str = "proxy_in";
const INNER: &str = "inner";
const NOT_TCP: &str = "not_tcp";
const PROXY_OUT: &str = "proxy_out";
const ANSWERS: &str = "answers";
const TO_SELF: &str = "to_self";
const BEGUN_OUT: &str = "begun_out";
/// The object that gives captured connections their timeouts in conntrack.
pub(super) const TIMEOUTS: &str = "captured";

/// `LOOPBACK_IFINDEX`: `lo` has this number in every netns, whatever it is renamed to.
const LOOPBACK: u32 = 1;

/// An address family, as a packet has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The set of flows from before the enrolment.
    pub(super) const fn before(self) -> &'static str {
        match self {
            Self::V4 => "before4",
            Self::V6 => "before6",
        }
    }

    /// The set of flows that the pod excludes.
    pub(super) const fn excluded(self) -> &'static str {
        match self {
            Self::V4 => "excluded4",
            Self::V6 => "excluded6",
        }
    }

    /// The set of captured flows of a pod that leaves the mesh.
    pub(super) const fn captured(self) -> &'static str {
        match self {
            Self::V4 => "captured4",
            Self::V6 => "captured6",
        }
    }
}

/// A set of flows as it should be: own address, own port, far address, far port, each in words of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) family: Family,
    /// Most flows.
    pub(super) size: u32,
}

/// The table's sets.
pub(super) fn sets(size: u32) -> Vec<Set> {
    let of =
        |family: Family| [family.before(), family.excluded(), family.captured()].map(|name| Set { name, family, size });
    Family::BOTH.into_iter().flat_map(of).collect()
}

/// How long conntrack remembers a captured connection, in seconds, by `CTA_TIMEOUT_TCP_*`. The proxy's sockets ask for a sign of life
/// every three minutes while they are there ([`crate::socket::keepalive`]), so five days (the kernel's own for a connection that is
/// open both ways) are enough for one that is half closed as well, which the kernel forgets after 60 or 120 s.
pub(super) const TCP_TIMEOUTS: [(u16, u32); 4] = [(3, 432_000), (4, 432_000), (5, 432_000), (6, 600)];

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

/// The comment of a table of the release before.
pub(super) const FORMER_COMMENT: &str = "culvert schema 2";

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
    let stage = Stage::ALL.into_iter().find(|known| stage_name(*known) == stage)?;
    Some((stage, generation.parse().ok()?))
}

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Deny => "deny",
        Stage::Learn => "learn",
        Stage::Redirect => "redirect",
        Stage::Part => "part",
        Stage::Drain => "drain",
    }
}

/// Everything that the table should hold, in the order in which a packet meets it.
pub(super) fn prescribe(spec: &Spec, exclusions: &Exclusions) -> Vec<Chain> {
    let hook = |kind: &str, number, priority| Some(Hook { kind: kind.to_owned(), number, priority });
    let Spec { stage, mark, .. } = *spec;
    let aside = |name, rules| Chain { name, hook: None, rules };
    let captured = |name, rules| aside(name, if chains::captures(stage) { rules } else { Vec::new() });
    vec![
        aside(ABOUT, vec![rule(about(spec), [vec![Expr::counter()]])]),
        aside(REFUSE, chains::refusals()),
        aside(RESETS, chains::resets(mark)),
        aside(TOWARDS_US, chains::towards_us()),
        captured(INNER, chains::inner()),
        captured(BEGUN_IN, chains::begun_in(exclusions)),
        aside(FROM_LO, chains::from_lo(stage)),
        captured(PROXY_IN, chains::proxy_in()),
        aside(NOT_TCP, chains::not_tcp()),
        aside(PROXY_OUT, chains::proxy_out()),
        aside(ANSWERS, chains::answers()),
        aside(TO_SELF, chains::to_self_out()),
        captured(BEGUN_OUT, chains::begun_out(exclusions)),
        Chain { name: "prerouting_raw", hook: hook("filter", 0, -300), rules: chains::untrack(mark) },
        Chain { name: "prerouting_nat", hook: hook("nat", 0, -100), rules: chains::translate(stage, exclusions) },
        Chain {
            name: "prerouting_filter",
            hook: hook("filter", 0, -50),
            rules: chains::arrive(stage, mark, exclusions),
        },
        Chain { name: OUTPUT, hook: hook("route", 3, -300), rules: chains::leave(stage, mark, exclusions) },
        // Before the translation of sources (100): a flow is asked for as its socket has it.
        Chain { name: "postrouting_filter", hook: hook("filter", 4, 90), rules: chains::part(stage, mark) },
    ]
}

/// What a table of the release before needs besides its own rules to remember the flows that begin: as their sockets have them, behind
/// its translation on the way in, before it on the way out.
pub(super) fn learning(own: Mark) -> Vec<Chain> {
    let hook = |number, priority| Some(Hook { kind: "filter".to_owned(), number, priority });
    vec![
        Chain { name: "learn_in", hook: hook(0, -45), rules: chains::learn_in() },
        Chain { name: "learn_out", hook: hook(3, -301), rules: chains::learn_out(own) },
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

    const STAGES: [Stage; 5] = Stage::ALL;

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

    /// The rules that a packet meets which enters here: those of a chain that it is sent to have the conditions of the jump as well.
    fn walked(chains: &[Chain], chain: &Chain) -> Vec<Rule> {
        let meets = |rule: &Rule| -> Vec<Rule> {
            let Some(Expr::Jump(to)) = rule.exprs.last() else { return vec![rule.clone()] };
            let sent = chains.iter().find(|chain| chain.name == to).expect("a chain that is there");
            let with = |inner: Rule| Rule { exprs: [rule.exprs.clone(), inner.exprs].concat(), ..inner };
            [rule.clone()].into_iter().chain(walked(chains, sent).into_iter().map(with)).collect()
        };
        chain.rules.iter().flat_map(meets).collect()
    }

    #[test]
    fn every_rule_that_decides_counts_and_each_has_a_name_of_its_own() {
        for stage in STAGES {
            let rules: Vec<_> =
                prescribe(&spec(stage), &excluded()).into_iter().flat_map(|chain| chain.rules).collect();
            let names: BTreeSet<_> = rules.iter().map(|rule| &rule.name).collect();
            assert_eq!(names.len(), rules.len());
            // What is on `lo` is judged, and counted, when it arrives.
            let decides = |rule: &&Rule| match rule.exprs.last() {
                Some(Expr::Jump(to)) => to == REFUSE,
                _ => !["loopback", "captured-to-lo"].contains(&rule.name.as_str()),
            };
            for rule in rules.iter().filter(decides) {
                assert!(count(&rule.exprs).is_some(), "{}", rule.name);
            }
        }
    }

    /// What a packet past the proxy leans on: each rule that lets a TCP packet of the pod's own out or in, and why it may.
    #[test]
    fn nothing_passes_while_capture_is_on_but_what_has_an_owner() {
        for stage in [Stage::Redirect, Stage::Part] {
            let chains = prescribe(&spec(stage), &excluded());
            for chain in chains.iter().filter(|chain| chain.hook.is_some()) {
                for rule in walked(&chains, chain).iter().filter(|rule| rule.exprs.last() == Some(&Expr::Accept)) {
                    let owned = |expr: &Expr| match expr {
                        // The proxy's own, by the mark or by a socket that is transparent; steered to the proxy; to the pod itself, or
                        // for others; a flow that is known; another protocol; by `lo`, or from another interface.
                        Expr::Socket(_)
                        | Expr::Steer
                        | Expr::DestinationType
                        | Expr::InSet(_)
                        | Expr::ChangeSet { .. } => true,
                        Expr::Meta(Meta::Mark | Meta::InputInterface | Meta::OutputInterface) => true,
                        Expr::CtStatus => true,
                        Expr::Cmp { equal: false, value } => value == &[6],
                        Expr::Cmp { equal: true, value } => value == &[17],
                        _ => false,
                    };
                    let translated_not = chain.name == "prerouting_nat";
                    assert!(translated_not || rule.exprs.iter().any(owned), "{} in {}", rule.name, chain.name);
                }
            }
            let last = |name: &str| chains.iter().find(|chain| chain.name == name).and_then(|chain| chain.rules.last());
            assert_eq!(last("prerouting_filter").map(|rule| rule.exprs.clone()), Some(parts::refuse()));
            assert_eq!(last("postrouting_filter").map(|rule| rule.exprs.clone()), Some(parts::drop()));
            let capture = last("output_route").map(|rule| rule.exprs.clone()).unwrap_or_default();
            assert!(capture.ends_with(&[Expr::Untrack, Expr::Accept]) && capture.contains(&Expr::SetMark));
        }
    }

    #[test]
    fn the_public_mark_exempts_nothing() {
        for stage in Stage::ALL {
            let chains = prescribe(&spec(stage), &excluded());
            for rule in chains.iter().filter(|chain| chain.hook.is_some()).flat_map(|chain| walked(&chains, chain)) {
                let public = marks_in(&rule.exprs).any(|mark| mark == FWMARK);
                // It is steered, refused, dropped, or taken off.
                let steered = ["captured-to-lo", "captured-on-link", "captured-out", "stranded-out"];
                let bound = [&steered[..], &["local-marked", "leave-captured", "refused", "silenced"]].concat();
                assert!(!public || bound.contains(&rule.name.as_str()), "{}", rule.name);
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
    fn what_is_excluded_passes_while_capture_is_on_and_nothing_more_does() {
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
            // A port that comes in: not translated, and passing and kept in each family; answers of those. Out: a port in each family, a
            // range in its own.
            let captures = matches!(stage, Stage::Redirect | Stage::Part);
            let expected = if captures { 2 * (1 + 2 + 2) + 2 + 2 + 5 } else { 0 };
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
