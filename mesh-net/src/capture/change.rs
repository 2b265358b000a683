//! The one transaction that makes the table what it should be.
//!
//! Chains that are as they should be are left alone, and rules are replaced inside chains that stay, from the first on that differs: a
//! packet sees a chain either before or after the transaction, never empty. Only a table whose chains themselves are wrong is created anew.

use rustix::io::Errno;

use super::expr::{self, Count, Expr};
use super::rules::{self, Chain, Set, TABLE};
use super::table::{ACCEPT, COMMENT, PERSIST, Seen, SeenChain, SeenRule, flags, read};
use super::transaction::{
    Batch, DELETE_CHAIN, DELETE_RULE, DELETE_SET, DELETE_TABLE, NEW_CHAIN, NEW_OBJECT, NEW_RULE, NEW_SET, NEW_TABLE,
    transaction,
};
use super::{Error, Mode, flows};
use crate::netlink::{APPEND, CREATE, Socket, Writer};

/// Takes over a table whose owner is gone; its rules, flows and counters stay as they are.
pub(super) fn adopt(socket: &mut Socket) -> Result<(), Error> {
    transaction(socket, |batch| new_table(batch, Mode::Owned))
}

/// Makes the table what it should be.
pub(super) fn write(
    socket: &mut Socket,
    mode: Mode,
    chains: &[Chain],
    sets: &[Set],
    seen: Option<&Seen>,
) -> Result<(), Error> {
    let counts = seen.map(Seen::counts).unwrap_or_default();
    let keep = seen.filter(|seen| keepable(seen, mode, sets));
    transaction(socket, |batch| {
        if seen.is_some() && keep.is_none() {
            batch.add("delete the table", DELETE_TABLE, 0, |w| w.put_str(1, TABLE));
        }
        new_table(batch, mode);
        // What is not ours, or hooked elsewhere: all rules first, which may jump from one to another.
        let odd = |old: &&SeenChain| !chains.iter().any(|chain| chain.name == old.name && old.defined_as(chain));
        let odd: Vec<&SeenChain> = keep.iter().flat_map(|seen| seen.chains.iter().filter(odd)).collect();
        for old in odd.iter().filter(|old| !old.rules.is_empty()) {
            empty(batch, &old.name);
        }
        // And those of our own chains that go, for the same reason.
        let kept = |chain: &Chain| keep.and_then(|seen| seen.chain(chain.name)).filter(|old| old.defined_as(chain));
        let stays: Vec<usize> = chains.iter().map(|chain| kept(chain).map_or(0, |old| old.stays(chain))).collect();
        for (chain, stay) in chains.iter().zip(&stays) {
            match kept(chain) {
                Some(old) if *stay == 0 && !old.rules.is_empty() => empty(batch, chain.name),
                Some(old) => old.rules[*stay..].iter().for_each(|rule| delete_rule(batch, chain.name, rule)),
                None => {}
            }
        }
        for extra in keep
            .iter()
            .flat_map(|seen| &seen.sets)
            .filter(|old| old.is_named() && sets.iter().all(|set| set.name != old.name))
        {
            batch.add(format!("delete set {}", extra.name), DELETE_SET, 0, |w| {
                w.put_str(1, TABLE);
                w.put_str(2, &extra.name);
            });
        }
        for old in &odd {
            batch.add(format!("delete chain {}", old.name), DELETE_CHAIN, 0, |w| {
                w.put_str(1, TABLE);
                w.put_str(3, &old.name);
            });
        }
        for (set, id) in sets.iter().zip(1..).filter(|(set, _)| keep.is_none_or(|seen| seen.set(set.name).is_none())) {
            batch.add(format!("create set {}", set.name), NEW_SET, CREATE, |w| flows::put_set(w, set, id));
        }
        if !keep.is_some_and(Seen::has_timeouts) {
            new_timeouts(batch);
        }
        // All chains before the rules, which jump from one to another.
        for chain in chains {
            if !keep.and_then(|seen| seen.chain(chain.name)).is_some_and(|old| old.defined_as(chain)) {
                new_chain(batch, chain);
            }
        }
        for (chain, stay) in chains.iter().zip(&stays) {
            for rule in &chain.rules[*stay..] {
                new_rule(batch, chain.name, rule, counts.get(&rule.name).copied());
            }
        }
    })
}

fn empty(batch: &mut Batch, chain: &str) {
    batch.add(format!("empty chain {chain}"), DELETE_RULE, 0, |w| {
        w.put_str(1, TABLE);
        w.put_str(2, chain);
    });
}

fn delete_rule(batch: &mut Batch, chain: &str, rule: &SeenRule) {
    batch.add(format!("delete rule {:?} of chain {chain}", rule.name), DELETE_RULE, 0, |w| {
        w.put_str(1, TABLE);
        w.put_str(2, chain);
        w.put(3, &rule.handle.to_be_bytes());
    });
}

/// Whether chains and rules can be replaced inside the table that is there, whose sets remember flows.
fn keepable(seen: &Seen, mode: Mode, sets: &[Set]) -> bool {
    // An orphan loses the owner flag and regains it when it is adopted; "dormant" can be taken back.
    let flags_fit = seen.flags & PERSIST == flags(mode) & PERSIST && (mode == Mode::Owned || seen.owner.is_none());
    flags_fit
        && (seen.is_current() || seen.is_former())
        && sets.iter().all(|set| seen.set(set.name).is_none_or(|old| old.defined_as(set)))
        && (seen.timeouts.is_none() || seen.has_timeouts())
}

/// Deletes the table; fine if there is none.
pub(super) fn delete(socket: &mut Socket) -> Result<(), Error> {
    if read(socket)?.is_none() {
        return Ok(());
    }
    let deleted = transaction(socket, |batch| batch.add("delete the table", DELETE_TABLE, 0, |w| w.put_str(1, TABLE)));
    match deleted {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other,
    }
}

fn new_table(batch: &mut Batch, mode: Mode) {
    batch.add("create the table", NEW_TABLE, CREATE, |w| {
        w.put_str(1, TABLE);
        w.put_be32(2, flags(mode));
        put_comment(w, 6, &rules::table_comment());
    });
}

/// Makes a table of the release before remember the flows that begin from now on, and changes nothing else of it.
pub(super) fn learn(socket: &mut Socket, mode: Mode, chains: &[Chain], sets: &[Set]) -> Result<(), Error> {
    transaction(socket, |batch| {
        if mode == Mode::Owned {
            // Only to be acknowledged as its owner.
            batch.add("update the table", NEW_TABLE, 0, |w| {
                w.put_str(1, TABLE);
                w.put_be32(2, flags(mode));
            });
        }
        for (set, id) in sets.iter().zip(1..) {
            batch.add(format!("create set {}", set.name), NEW_SET, CREATE, |w| flows::put_set(w, set, id));
        }
        for chain in chains {
            new_chain(batch, chain);
            // An attempt before this one may have come to here.
            empty(batch, chain.name);
            for rule in &chain.rules {
                new_rule(batch, chain.name, rule, None);
            }
        }
    })
}

fn new_timeouts(batch: &mut Batch) {
    /// `IPPROTO_TCP`; the table's family says that it is for both families.
    const TCP: u8 = 6;
    batch.add("create the timeouts of captured connections", NEW_OBJECT, CREATE, |w| {
        w.put_str(1, TABLE);
        w.put_str(2, rules::TIMEOUTS);
        w.put_be32(3, expr::CT_TIMEOUT);
        w.nest(4, |w| {
            w.put(2, &[TCP]);
            w.nest(3, |w| {
                for (state, seconds) in rules::TCP_TIMEOUTS {
                    w.put_be32(state, seconds);
                }
            });
        });
    });
}

fn new_chain(batch: &mut Batch, chain: &Chain) {
    batch.add(format!("create chain {}", chain.name), NEW_CHAIN, CREATE, |w| {
        w.put_str(1, TABLE);
        w.put_str(3, chain.name);
        if let Some(hook) = &chain.hook {
            w.nest(4, |w| {
                w.put_be32(1, hook.number);
                w.put_be32(2, hook.priority.cast_unsigned());
            });
            w.put_be32(5, ACCEPT);
            w.put_str(7, &hook.kind);
        }
    });
}

fn new_rule(batch: &mut Batch, chain: &str, rule: &rules::Rule, count: Option<Count>) {
    batch.add(format!("add rule {:?} to chain {chain}", rule.name), NEW_RULE, CREATE | APPEND, |w| {
        w.put_str(1, TABLE);
        w.put_str(2, chain);
        w.nest(4, |w| {
            for expr in &rule.exprs {
                match (expr, count) {
                    // A replaced rule goes on counting where it was.
                    (Expr::Counter(_), Some(count)) => Expr::Counter(count).write(w),
                    _ => expr.write(w),
                }
            }
        });
        put_comment(w, 7, &rule.name);
    });
}

fn put_comment(writer: &mut Writer, kind: u16, comment: &str) {
    let length = u8::try_from(comment.len() + 1).expect("our comments are short");
    let mut data = vec![COMMENT, length];
    data.extend_from_slice(comment.as_bytes());
    data.push(0);
    writer.put(kind, &data);
}
