//! The table by netlink: what is there. [`super::change`] makes it what it should be.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;

use super::expr::{self, Count, Expr};
use super::rules::{self, Chain, Hook, Set, TABLE};
use super::transaction::{
    FIXED, GET_CHAIN, GET_OBJECT, GET_RULE, GET_SET, GET_TABLE, INET, NEW_CHAIN, NEW_OBJECT, NEW_RULE, NEW_SET,
};
use super::{Error, Mode, flows};
use crate::netlink::{Attributes, Message, Socket};

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`.
const OWNED: u32 = 0x6;
pub(super) const PERSIST: u32 = 0x4;
pub(super) const ACCEPT: u32 = 1;
/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_RULE_COMMENT`: how `nft` keeps a comment in user data.
pub(super) const COMMENT: u8 = 0;
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
    pub(super) fn is_named(&self) -> bool {
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
    pub(super) fn stays(&self, chain: &Chain) -> usize {
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
        GET_SET,
        &INET,
        |w| w.put_str(1, TABLE),
        |message, found| {
            let set = message.attributes(FIXED);
            if message.kind != NEW_SET || set.text(1).as_deref() != Some(TABLE) {
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

/// Whether a table is there that had an owner and lost it.
pub(super) const fn orphaned(seen: &Seen) -> bool {
    seen.owner.is_none() && seen.flags & PERSIST != 0
}
