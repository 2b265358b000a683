//! What differs between the rules that are there and those that should be, in words that can go into an Event.

use std::fmt;

use mesh_model::Mark;

use super::expr::same;
use super::rules::{self, Chain, Set};
use super::table::{self, Seen, SeenChain};
use super::{Mode, Spec};

/// One difference. Its `Display` is fit for an Event; it never shows a mark.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drift {
    /// The table is gone.
    TableMissing,
    /// The table's flags are not those of our mode (for example dormant, or plain instead of owned).
    TableFlags {
        /// What it has.
        found: u32,
    },
    /// The table should be owned by this session and is not.
    TableNotOwned,
    /// The table was made by another version, or its comment was changed.
    TableVersion,
    /// The table does not say what it is, and nobody remembers.
    Unrecognised,
    /// A set of flows is gone or of another kind.
    SetMissing {
        /// Its name.
        set: String,
    },
    /// A set that is not ours.
    SetExtra {
        /// Its name.
        set: String,
    },
    /// The object that gives captured connections their timeouts is gone or changed.
    TimeoutsMissing,
    /// A chain is gone.
    ChainMissing {
        /// Its name.
        chain: String,
    },
    /// A chain hooks elsewhere or drops by policy.
    ChainChanged {
        /// Its name.
        chain: String,
    },
    /// A chain that is not ours.
    ChainExtra {
        /// Its name.
        chain: String,
    },
    /// A rule is gone.
    RuleMissing {
        /// Its chain.
        chain: String,
        /// Its name.
        rule: String,
    },
    /// A rule has our name and does something else.
    RuleChanged {
        /// Its chain.
        chain: String,
        /// Its name.
        rule: String,
    },
    /// A rule that is not ours.
    RuleExtra {
        /// Its chain.
        chain: String,
        /// What it does, as text.
        text: String,
        /// Our rule that it stands before; `None`: at the end.
        before: Option<String>,
    },
    /// Our rules stand in another order.
    RuleOrder {
        /// Their chain.
        chain: String,
    },
    /// One of our ip rules is gone or changed.
    IpRuleMissing {
        /// "ipv4" or "ipv6".
        family: &'static str,
        /// What it is for.
        rule: &'static str,
    },
    /// Another ip rule uses our packet mark.
    IpRuleExtra {
        /// "ipv4" or "ipv6".
        family: &'static str,
        /// Its priority.
        priority: u32,
    },
    /// The route of our table is gone or changed.
    RouteMissing {
        /// "ipv4" or "ipv6".
        family: &'static str,
        /// Its interface.
        interface: String,
    },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableMissing => write!(f, "table inet culvert is missing"),
            Self::TableFlags { found } => write!(f, "table inet culvert has flags {found:#x}"),
            Self::TableNotOwned => write!(f, "table inet culvert is not owned by pod-watcher"),
            Self::TableVersion => write!(f, "table inet culvert is of another version"),
            Self::Unrecognised => write!(f, "table inet culvert does not say what it is"),
            Self::SetMissing { set } => write!(f, "set {set} is missing or changed"),
            Self::SetExtra { set } => write!(f, "set {set} was added"),
            Self::TimeoutsMissing => write!(f, "the timeouts of captured connections are missing or changed"),
            Self::ChainMissing { chain } => write!(f, "chain {chain} is missing"),
            Self::ChainChanged { chain } => write!(f, "chain {chain} has another hook, priority or policy"),
            Self::ChainExtra { chain } => write!(f, "chain {chain} was added"),
            Self::RuleMissing { chain, rule } => write!(f, "rule {rule:?} of chain {chain} is missing"),
            Self::RuleChanged { chain, rule } => write!(f, "rule {rule:?} of chain {chain} was changed"),
            Self::RuleExtra { chain, text, before: Some(rule) } => {
                write!(f, "rule ({text}) was added to chain {chain} before {rule:?}")
            }
            Self::RuleExtra { chain, text, before: None } => {
                write!(f, "rule ({text}) was added at the end of chain {chain}")
            }
            Self::RuleOrder { chain } => write!(f, "rules of chain {chain} stand in another order"),
            Self::IpRuleMissing { family, rule } => write!(f, "the {family} ip rule of {rule} is missing or changed"),
            Self::IpRuleExtra { family, priority } => {
                write!(f, "another {family} ip rule (priority {priority}) stands beside ours")
            }
            Self::RouteMissing { family, interface } => {
                write!(f, "the {family} route of the mesh's table by {interface} is missing or changed")
            }
        }
    }
}

/// What the table says that it is: stage and generation from the comment, the mark from the rules themselves. If rules disagree
/// about the mark, most of them are right: one that was tampered with is the exception.
pub(super) fn learn(seen: &Seen) -> Option<Spec> {
    let (stage, generation) = seen.chain(rules::ABOUT)?.rules.iter().find_map(|rule| rules::parse_about(&rule.name))?;
    let marks: Vec<u32> =
        seen.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| rules::marks_in(&rule.exprs)).collect();
    let marks: Vec<u32> = marks.into_iter().filter(|mark| !rules::is_public(*mark)).collect();
    let votes = |mark: u32| marks.iter().filter(|other| **other == mark).count();
    let mark = marks.iter().copied().max_by_key(|mark| votes(*mark))?;
    Some(Spec { stage, mark: Mark::from_random(mark)?, generation })
}

/// Compares the table with what it should be. `port`: of the session that should own it.
pub(super) fn compare(seen: Option<&Seen>, chains: &[Chain], sets: &[Set], mode: Mode, port: u32) -> Vec<Drift> {
    let Some(seen) = seen else { return vec![Drift::TableMissing] };
    let mut drift = Vec::new();
    if seen.flags != table::flags(mode) {
        drift.push(if mode == Mode::Owned && table::orphaned(seen) {
            Drift::TableNotOwned
        } else {
            Drift::TableFlags { found: seen.flags }
        });
    } else if mode == Mode::Owned && seen.owner != Some(port) {
        drift.push(Drift::TableNotOwned);
    }
    if !seen.is_current() {
        drift.push(Drift::TableVersion);
    }
    for set in sets.iter().filter(|set| !seen.set(set.name).is_some_and(|old| old.defined_as(set))) {
        drift.push(Drift::SetMissing { set: set.name.to_owned() });
    }
    for extra in seen.sets.iter().filter(|old| sets.iter().all(|set| set.name != old.name)) {
        drift.push(Drift::SetExtra { set: extra.name.clone() });
    }
    if !seen.has_timeouts() {
        drift.push(Drift::TimeoutsMissing);
    }
    for extra in seen.chains.iter().filter(|old| chains.iter().all(|chain| chain.name != old.name)) {
        drift.push(Drift::ChainExtra { chain: extra.name.clone() });
    }
    for chain in chains {
        match seen.chain(chain.name) {
            None => drift.push(Drift::ChainMissing { chain: chain.name.to_owned() }),
            Some(old) => {
                if !old.defined_as(chain) {
                    drift.push(Drift::ChainChanged { chain: chain.name.to_owned() });
                }
                if !old.holds(chain) {
                    compare_rules(old, chain, &mut drift);
                }
            }
        }
    }
    drift
}

fn compare_rules(old: &SeenChain, chain: &Chain, drift: &mut Vec<Drift>) {
    let name = || chain.name.to_owned();
    let before = drift.len();
    // Which of the rules that are there stands for each of ours.
    let mut taken: Vec<Option<usize>> = vec![None; old.rules.len()];
    for (index, rule) in chain.rules.iter().enumerate() {
        let found = old
            .rules
            .iter()
            .enumerate()
            .find(|(at, seen)| taken[*at].is_none() && seen.name == rule.name && same(&seen.exprs, &rule.exprs));
        let named = || old.rules.iter().enumerate().find(|(at, seen)| taken[*at].is_none() && seen.name == rule.name);
        match (found, named()) {
            (Some((at, _)), _) => taken[at] = Some(index),
            (None, Some((at, _))) => {
                taken[at] = Some(index);
                drift.push(Drift::RuleChanged { chain: name(), rule: rule.name.clone() });
            }
            (None, None) => drift.push(Drift::RuleMissing { chain: name(), rule: rule.name.clone() }),
        }
    }
    for (at, seen) in old.rules.iter().enumerate().filter(|(at, _)| taken[*at].is_none()) {
        let next = taken[at..].iter().flatten().next().map(|index| chain.rules[*index].name.clone());
        drift.push(Drift::RuleExtra { chain: name(), text: super::text::exprs(&seen.exprs, None), before: next });
    }
    let order: Vec<usize> = taken.into_iter().flatten().collect();
    // Whatever else differs is named above; if nothing is, the chain still does not hold what it should.
    if !order.is_sorted() || drift.len() == before {
        drift.push(Drift::RuleOrder { chain: name() });
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::Exclusions;

    use super::super::table::{SeenRule, SeenSet};
    use super::super::{Stage, flows};
    use super::*;
    use crate::capture::expr::{Count, Expr};

    const PORT: u32 = 99;

    fn spec() -> Spec {
        Spec { stage: Stage::Redirect, mark: Mark::from_random(77).expect("not reserved"), generation: 3 }
    }

    fn as_prescribed() -> Seen {
        let chains = rules::prescribe(&spec(), &Exclusions::default()).into_iter().map(|chain| SeenChain {
            name: chain.name.to_owned(),
            hook: chain.hook,
            policy: 1,
            rules: chain
                .rules
                .into_iter()
                .map(|rule| SeenRule { handle: 0, name: rule.name, exprs: rule.exprs })
                .collect(),
        });
        let sets = rules::sets(9).into_iter().map(|set| SeenSet {
            name: set.name.to_owned(),
            flags: flows::DYNAMIC,
            key_len: flows::key_len(set.family),
        });
        Seen {
            flags: 6,
            owner: Some(PORT),
            comment: Some(rules::table_comment()),
            chains: chains.collect(),
            sets: sets.collect(),
            timeouts: Some(rules::TCP_TIMEOUTS.to_vec()),
        }
    }

    fn check(change: impl FnOnce(&mut Seen), expected: &[&str]) {
        let mut seen = as_prescribed();
        change(&mut seen);
        let chains = rules::prescribe(&spec(), &Exclusions::default());
        let drift = compare(Some(&seen), &chains, &rules::sets(9), Mode::Owned, PORT);
        assert_eq!(drift.iter().map(Drift::to_string).collect::<Vec<_>>(), expected);
    }

    fn chain<'a>(seen: &'a mut Seen, name: &str) -> &'a mut SeenChain {
        seen.chains.iter_mut().find(|chain| chain.name == name).expect("prescribed")
    }

    #[test]
    fn what_is_prescribed_has_no_drift_whatever_it_counted() {
        check(|_| {}, &[]);
        let counted = |seen: &mut Seen| {
            let exprs = seen.chains.iter_mut().flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.exprs);
            for expr in exprs.filter(|expr| matches!(expr, Expr::Counter(_))) {
                *expr = Expr::Counter(Count { packets: 3, bytes: 180 });
            }
        };
        check(counted, &[]);
    }

    #[test]
    fn each_kind_of_change_is_named() {
        check(|seen| seen.flags = 7, &["table inet culvert has flags 0x7"]);
        check(|seen| seen.owner = Some(1), &["table inet culvert is not owned by pod-watcher"]);
        check(|seen| (seen.flags, seen.owner) = (4, None), &["table inet culvert is not owned by pod-watcher"]);
        check(|seen| seen.comment = None, &["table inet culvert is of another version"]);
        check(|seen| seen.chains.retain(|chain| chain.name != "output_route"), &["chain output_route is missing"]);
        check(
            |seen| chain(seen, "output_route").policy = 0,
            &["chain output_route has another hook, priority or policy"],
        );
        check(
            |seen| drop(chain(seen, "output_route").rules.pop()),
            &["rule \"capture-out\" of chain output_route is missing"],
        );
        check(
            |seen| chain(seen, "output_route").rules.last_mut().expect("rules").exprs.push(Expr::Accept),
            &["rule \"capture-out\" of chain output_route was changed"],
        );
        check(
            |seen| {
                chain(seen, "output_route")
                    .rules
                    .insert(0, SeenRule { handle: 0, name: String::new(), exprs: vec![Expr::Accept] })
            },
            &["rule (accept) was added to chain output_route before \"not-tcp\""],
        );
        check(
            |seen| {
                chain(seen, "output_route").rules.push(SeenRule {
                    handle: 0,
                    name: String::new(),
                    exprs: vec![Expr::Accept],
                })
            },
            &["rule (accept) was added at the end of chain output_route"],
        );
        check(
            |seen| chain(seen, "output_route").rules.swap(0, 1),
            &["rules of chain output_route stand in another order"],
        );
        let another = SeenChain { name: "x".to_owned(), hook: None, policy: 1, rules: Vec::new() };
        check(|seen| seen.chains.push(another), &["chain x was added"]);
        check(|seen| drop(seen.sets.remove(0)), &["set before4 is missing or changed"]);
        check(|seen| seen.sets[0].flags = 0, &["set before4 is missing or changed"]);
        let another = SeenSet { name: "x".to_owned(), flags: 0, key_len: 4 };
        check(|seen| seen.sets.push(another), &["set x was added"]);
        check(|seen| seen.timeouts = None, &["the timeouts of captured connections are missing or changed"]);
    }

    #[test]
    fn the_spec_is_learned_even_if_one_rule_lies_about_the_mark() {
        let mut seen = as_prescribed();
        assert_eq!(learn(&seen), Some(spec()));
        let lied = Expr::Cmp { equal: true, value: 1234_u32.to_ne_bytes().to_vec() };
        let proxy = chain(&mut seen, "output_route").rules.iter_mut().find(|rule| rule.name == "of-proxy-out");
        proxy.expect("prescribed").exprs[2] = lied;
        assert_eq!(learn(&seen), Some(spec()));
        seen.chains.retain(|chain| chain.name != rules::ABOUT);
        assert_eq!(learn(&seen), None);
    }
}
