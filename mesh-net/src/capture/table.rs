//! The table by netlink: what is there, and the one transaction that makes it what it should be.
//!
//! Chains that are as they should be are left alone, and rules are replaced inside chains that stay, from the first on that differs: a
//! packet sees a chain either before or after the transaction, never empty. Only a table whose chains themselves are wrong is created anew.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::expr::{self, Count, Expr};
use super::rules::{self, Chain, Hook, Set, TABLE};
use super::{Error, Mode, flows};
use crate::netlink::{ACK, APPEND, Attributes, CREATE, Message, Socket, Writer};

pub(super) const SUBSYSTEM: u16 = 10 << 8; // NFNL_SUBSYS_NFTABLES
pub(super) const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM | 2;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_OBJECT: u16 = SUBSYSTEM | 18;
const GET_OBJECT: u16 = SUBSYSTEM | 19;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `struct nfgenmsg`: family, version, resource id.
pub(super) const FIXED: usize = 4;
pub(super) const INET: [u8; FIXED] = [1, 0, 0, 0];
const BATCH: [u8; FIXED] = [0, 0, 0, 10];

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`.
const OWNED: u32 = 0x6;
const PERSIST: u32 = 0x4;
const ACCEPT: u32 = 1;
/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_RULE_COMMENT`: how `nft` keeps a comment in user data.
const COMMENT: u8 = 0;
/// A table that changes between the dumps of its parts is read again this often (guess).
const READ_TRIES: u32 = 8;

/// The table as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) flags: u32,
    /// Netlink port of the living owner.
    pub(super) owner: Option<u32>,
    pub(super) comment: Option<String>,
    pub(super) chains: Vec<SeenChain>,
    pub(super) sets: Vec<SeenSet>,
    /// Of the object that gives captured connections their timeouts, as [`rules::TCP_TIMEOUTS`]. `None`: there is none.
    pub(super) timeouts: Option<Vec<(u16, u32)>>,
}

/// A set as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenSet {
    pub(super) name: String,
    pub(super) flags: u32,
    pub(super) key_len: u32,
}

impl SeenSet {
    /// Whether it is more than a part of a rule, which comes and goes with that.
    fn is_named(&self) -> bool {
        /// `NFT_SET_ANONYMOUS`.
        const PART_OF_A_RULE: u32 = 1;
        self.flags & PART_OF_A_RULE == 0
    }

    /// Whether it can hold what this one should. Its size is that of the setting when it was made.
    pub(super) fn defined_as(&self, set: &Set) -> bool {
        self.flags == flows::DYNAMIC && self.key_len == flows::key_len(set.family)
    }
}

/// A chain as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SeenChain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) policy: u32,
    pub(super) rules: Vec<SeenRule>,
}

/// A rule as it is; the name is its comment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SeenRule {
    /// The kernel's number of it.
    pub(super) handle: u64,
    pub(super) name: String,
    pub(super) exprs: Vec<Expr>,
}

impl Seen {
    pub(super) fn chain(&self, name: &str) -> Option<&SeenChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    pub(super) fn set(&self, name: &str) -> Option<&SeenSet> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// Of the release before.
    pub(super) fn is_former(&self) -> bool {
        self.comment.as_deref() == Some(rules::FORMER_COMMENT) && self.chain(rules::OUTPUT).is_none()
    }

    /// Of this version; or made by the release before and changed by this one, for the comment of a table stays what it is.
    pub(super) fn is_current(&self) -> bool {
        self.comment.as_deref() == Some(rules::table_comment().as_str())
            || self.comment.as_deref() == Some(rules::FORMER_COMMENT) && !self.is_former()
    }

    pub(super) fn has_timeouts(&self) -> bool {
        self.timeouts.as_ref().is_some_and(|seen| rules::TCP_TIMEOUTS.iter().all(|wanted| seen.contains(wanted)))
    }

    pub(super) fn counts(&self) -> BTreeMap<String, Count> {
        let rules = self.chains.iter().filter(|chain| chain.name != rules::ABOUT).flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| Some((rule.name.clone(), rules::count(&rule.exprs)?))).collect()
    }
}

impl SeenRule {
    fn is(&self, rule: &rules::Rule) -> bool {
        self.name == rule.name && expr::same(&self.exprs, &rule.exprs)
    }
}

impl SeenChain {
    /// Hook, type, priority and policy as they should be.
    pub(super) fn defined_as(&self, chain: &Chain) -> bool {
        self.hook == chain.hook && self.policy == ACCEPT
    }

    /// Also the rules, in their order.
    pub(super) fn holds(&self, chain: &Chain) -> bool {
        self.rules.len() == chain.rules.len() && self.begins_with(chain) == chain.rules.len()
    }

    /// How many of the first rules are as they should be.
    fn begins_with(&self, chain: &Chain) -> usize {
        self.rules.iter().zip(&chain.rules).take_while(|(seen, rule)| seen.is(rule)).count()
    }

    /// How many of them are left where they are when the others are replaced: most stages begin alike, and a change of stage writes half
    /// as much.
    fn stays(&self, chain: &Chain) -> usize {
        /// More are not taken out one by one, which a message each would do: whoever may add rules could make it too many.
        const ONE_BY_ONE: usize = 256;
        let stay = self.begins_with(chain);
        if self.rules.len() - stay > ONE_BY_ONE { 0 } else { stay }
    }
}

/// Which flags a table has in this mode.
pub(super) const fn flags(mode: Mode) -> u32 {
    match mode {
        Mode::Owned => OWNED,
        Mode::Plain => 0,
    }
}

/// Reads the table; `None` if there is none.
pub(super) fn read(socket: &mut Socket) -> Result<Option<Seen>, Error> {
    for _ in 0..READ_TRIES {
        let mut generations = Vec::new();
        let Some(mut seen) = read_table(socket, &mut generations).map_err(Error::kernel("read table inet culvert"))?
        else {
            return Ok(None);
        };
        let rules =
            read_parts(socket, &mut seen, &mut generations).map_err(Error::kernel("read the rules of inet culvert"))?;
        // Every answer names the generation of the ruleset; parts of different ones do not make a picture.
        if generations.windows(2).all(|pair| pair[0] == pair[1]) {
            for (chain, rule) in rules {
                if let Some(chain) = seen.chains.iter_mut().find(|known| known.name == chain) {
                    chain.rules.push(rule);
                }
            }
            return Ok(Some(seen));
        }
    }
    Err(Error::Contended { tries: READ_TRIES })
}

fn read_table(socket: &mut Socket, generations: &mut Vec<[u8; 2]>) -> io::Result<Option<Seen>> {
    let mut found = None;
    let asked = socket.request(
        GET_TABLE,
        0,
        &INET,
        |w| w.put_str(1, TABLE),
        |message| {
            generations.extend(generation(message));
            let table = message.attributes(FIXED);
            found = Some(Seen {
                flags: table.be32(2).unwrap_or(0),
                owner: table.be32(7),
                comment: table.find(6).and_then(comment),
                chains: Vec::new(),
                sets: Vec::new(),
                timeouts: None,
            });
        },
    );
    match asked {
        Ok(()) => Ok(found),
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the chains into `seen`; answers the rules, each with the name of its chain.
fn read_parts(
    socket: &mut Socket,
    seen: &mut Seen,
    generations: &mut Vec<[u8; 2]>,
) -> io::Result<Vec<(String, SeenRule)>> {
    seen.chains = socket.dump(
        GET_CHAIN,
        &INET,
        |_| {},
        |message, found| {
            let chain = message.attributes(FIXED);
            if message.kind != NEW_CHAIN || chain.text(1).as_deref() != Some(TABLE) {
                return;
            }
            generations.extend(generation(message));
            let hook = chain.find(4).map(Attributes::nested).map(|hook| Hook {
                kind: chain.text(7).unwrap_or_default(),
                number: hook.be32(1).unwrap_or(u32::MAX),
                priority: hook.be32(2).unwrap_or_default().cast_signed(),
            });
            let (name, policy) = (chain.text(3).unwrap_or_default(), chain.be32(5).unwrap_or(ACCEPT));
            found.push(SeenChain { name, hook, policy, rules: Vec::new() });
        },
    )?;
    seen.sets = read_sets(socket, generations)?;
    seen.timeouts = read_timeouts(socket, generations)?;
    socket.dump(
        GET_RULE,
        &INET,
        |w| w.put_str(1, TABLE),
        |message, found| {
            let rule = message.attributes(FIXED);
            if message.kind != NEW_RULE || rule.text(1).as_deref() != Some(TABLE) {
                return;
            }
            generations.extend(generation(message));
            let list = Attributes::nested(rule.find(4).unwrap_or_default());
            let exprs = list.map(|(_, element)| Expr::read(element)).collect();
            let name = rule.find(7).and_then(comment).unwrap_or_default();
            let handle = rule.be64(3).unwrap_or_default();
            found.push((rule.text(2).unwrap_or_default(), SeenRule { handle, name, exprs }));
        },
    )
}

fn read_sets(socket: &mut Socket, generations: &mut Vec<[u8; 2]>) -> io::Result<Vec<SeenSet>> {
    socket.dump(
        flows::GET_SET,
        &INET,
        |w| w.put_str(1, TABLE),
        |message, found| {
            let set = message.attributes(FIXED);
            if message.kind != flows::NEW_SET || set.text(1).as_deref() != Some(TABLE) {
                return;
            }
            generations.extend(generation(message));
            let name = set.text(2).unwrap_or_default();
            found.push(SeenSet { name, flags: set.be32(3).unwrap_or(0), key_len: set.be32(5).unwrap_or(0) });
        },
    )
}

fn read_timeouts(socket: &mut Socket, generations: &mut Vec<[u8; 2]>) -> io::Result<Option<Vec<(u16, u32)>>> {
    let found = socket.dump(
        GET_OBJECT,
        &INET,
        |w| w.put_str(1, TABLE),
        |message, found| {
            let object = message.attributes(FIXED);
            let named = object.text(1).as_deref() == Some(TABLE) && object.text(2).as_deref() == Some(rules::TIMEOUTS);
            if message.kind != NEW_OBJECT || !named || object.be32(3) != Some(expr::CT_TIMEOUT) {
                return;
            }
            generations.extend(generation(message));
            let data = Attributes::nested(object.find(4).unwrap_or_default());
            let values = Attributes::nested(data.find(3).unwrap_or_default());
            let values = values.filter_map(|(state, value)| Some((state, u32::from_be_bytes(value.try_into().ok()?))));
            found.push(values.collect());
        },
    )?;
    Ok(found.into_iter().next())
}

/// The low half of the ruleset's generation, which the kernel puts into the resource id of its answers.
fn generation(message: &Message<'_>) -> Option<[u8; 2]> {
    message.payload.get(2..4).and_then(|bytes| bytes.try_into().ok())
}

fn comment(user_data: &[u8]) -> Option<String> {
    let mut rest = user_data;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(crate::netlink::text(value));
        }
        rest = &tail[value.len()..];
    }
    None
}

/// A transaction being written. Remembers what each message is about, for the message of an error.
pub(super) struct Batch {
    writer: Writer,
    first: u32,
    about: Vec<String>,
}

impl Batch {
    pub(super) fn add(&mut self, what: impl Into<String>, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        let seq = self.first.wrapping_add(u32::try_from(self.about.len()).expect("a batch has tens of messages"));
        // One acknowledgement for all; kernels before 6.10 give none for the end of a batch.
        let ack = if self.about.len() == 1 { ACK } else { 0 };
        self.writer.message(kind, flags | ack, seq, &INET, body);
        self.about.push(what.into());
    }
}

/// Sends what `fill` adds as one transaction.
pub(super) fn transaction(socket: &mut Socket, fill: impl FnOnce(&mut Batch)) -> Result<(), Error> {
    /// More messages than any of our transactions has (a pod that excludes a thousand ports has some 3,000 rules); sequence numbers are set aside for them.
    const ROOM: u32 = 8192;
    let first = socket.sequence(ROOM);
    let mut batch = Batch { writer: Writer::default(), first, about: vec!["begin".to_owned()] };
    batch.writer.message(BATCH_BEGIN, 0, first, &BATCH, |_| {});
    fill(&mut batch);
    let last = first.wrapping_add(u32::try_from(batch.about.len()).expect("a batch has tens of messages"));
    batch.writer.message(BATCH_END, 0, last, &BATCH, |_| {});
    let (about, bytes) = (batch.about, batch.writer.into_bytes());
    socket.batch(&bytes, first, first.wrapping_add(1), last).map_err(|(seq, source)| {
        let what = about.get(seq.wrapping_sub(first) as usize).map_or("commit", String::as_str);
        Error::Kernel { what: format!("change table inet culvert: {what}"), source }
    })
}

/// Takes over a table whose owner is gone; its rules, flows and counters stay as they are.
pub(super) fn adopt(socket: &mut Socket) -> Result<(), Error> {
    transaction(socket, |batch| new_table(batch, Mode::Owned))
}

/// Whether a table is there that had an owner and lost it.
pub(super) const fn orphaned(seen: &Seen) -> bool {
    seen.owner.is_none() && seen.flags & PERSIST != 0
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
            batch.add(format!("delete set {}", extra.name), flows::DELETE_SET, 0, |w| {
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
            batch.add(format!("create set {}", set.name), flows::NEW_SET, CREATE, |w| flows::put_set(w, set, id));
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
            batch.add(format!("create set {}", set.name), flows::NEW_SET, CREATE, |w| flows::put_set(w, set, id));
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
