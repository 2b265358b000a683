//! The nf_tables expressions that our rules are made of, and their netlink form.
//!
//! Everything works on register 1, but the end of a range, which is in register 2, and the four numbers of a flow, which stand one
//! after the other in words of four bytes from register 1 on. An expression that is read back and is not exactly one of these
//! becomes [`Expr::Other`], which equals none of ours: what we do not understand is a difference. Numbers:
//! `linux/netfilter/nf_tables.h`.

use crate::netlink::{Attributes, Writer};

/// One expression. Values in registers: marks, interface numbers and address types in host order, ports in network order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Load a property of the packet.
    Meta(Meta),
    /// Set the packet's mark.
    SetMark,
    /// Load what became of the packet's connection (`enum ip_conntrack_status`, host order).
    CtStatus,
    /// Load which way of its connection the packet goes (`enum ip_conntrack_dir`, one byte).
    CtDirection,
    /// Load a number of the packet's connection as it was before anybody translated it.
    Original {
        /// Which.
        number: Original,
        /// Into which word.
        at: u8,
    },
    /// Conntrack shall not see the packet.
    Untrack,
    /// Let the packet's connection have the timeouts of this object.
    Timeouts(String),
    /// Load a property of the socket that the packet belongs to, listeners included. Ends the rule where there is none.
    Socket(OfSocket),
    /// Load bytes of the transport header.
    Transport {
        /// From where.
        offset: u32,
        /// How many.
        len: u32,
        /// Into which word.
        at: u8,
    },
    /// Load bytes of the network header.
    Network {
        /// From where.
        offset: u32,
        /// How many.
        len: u32,
        /// Into which word.
        at: u8,
    },
    /// Load the type of the destination address, by the local table alone: neither the mark nor an interface plays a part.
    DestinationType,
    /// The same of the source address.
    SourceType,
    /// Go on only if the flow in the registers is in this set.
    InSet(String),
    /// Put the flow in the registers into this set, or take it out. Ends the rule where the set is full.
    ChangeSet {
        /// Which.
        set: String,
        /// How.
        change: Change,
    },
    /// Go on only while packets come more slowly than this.
    Limit {
        /// Packets a second.
        rate: u64,
        /// And as many more at once.
        burst: u32,
    },
    /// `value & mask ^ xor`.
    Bitwise {
        /// And with this.
        mask: Vec<u8>,
        /// Then exclusive-or with this.
        xor: Vec<u8>,
    },
    /// Go on only if the register is (not) this.
    Cmp {
        /// Equal, or different.
        equal: bool,
        /// To what.
        value: Vec<u8>,
    },
    /// Load a constant.
    Load(Vec<u8>),
    /// Load a constant into register 2: the end of a range.
    LoadEnd(Vec<u8>),
    /// End the chain: the packet passes on to the next hook.
    Accept,
    /// The packet ends here.
    Drop,
    /// Go on in another chain, and behind this rule when that one has nothing to say.
    Jump(String),
    /// Back to where the jump came from.
    Return,
    /// Count.
    Counter(Count),
    /// To a local listener on the port in the register.
    Redirect,
    /// To the first port of the range from register 1 to register 2 with which the connection's four numbers are nobody else's.
    RedirectRange,
    /// To the socket that the packet belongs to, else to the listener on the port in the register, whatever the packet's own
    /// destination. Goes on only if that socket is transparent (`IP_TRANSPARENT`).
    Steer,
    /// Refuse with a TCP reset.
    Reset,
    /// Something that we never write.
    Other {
        /// The kernel's name for it.
        name: String,
        /// Its attributes.
        data: Vec<u8>,
    },
}

/// What a rule counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// `enum nft_meta_keys`, those we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Meta {
    Mark = 3,
    InputInterface = 4,
    OutputInterface = 5,
    Family = 15,
    Transport = 16,
    /// What kind of device the packet came by, a name in 16 bytes (`rtnl_link_ops.kind`; Linux 4.20).
    InputKind = 26,
}

impl Meta {
    const ALL: [Self; 6] =
        [Self::Mark, Self::InputInterface, Self::OutputInterface, Self::Family, Self::Transport, Self::InputKind];
}

/// `enum nft_ct_keys`: the numbers of a connection as its first packet had them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Original {
    SourcePort = 11,
    DestinationPort = 12,
    SourceV4 = 19,
    DestinationV4 = 20,
    SourceV6 = 21,
    DestinationV6 = 22,
}

impl Original {
    const ALL: [Self; 6] = [
        Self::SourcePort,
        Self::DestinationPort,
        Self::SourceV4,
        Self::DestinationV4,
        Self::SourceV6,
        Self::DestinationV6,
    ];
}

/// `enum nft_socket_keys`, those we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum OfSocket {
    /// `IP_TRANSPARENT`, one byte; also of sockets that are little more than a note: requests, TIME_WAIT, FIN_WAIT2.
    Transparent = 0,
    /// `SO_MARK`; those have none, and end the rule.
    Mark = 1,
}

/// What a rule does to a set (`enum nft_dynset_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Change {
    Add = 0,
    Delete = 2,
}

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// `NFPROTO_UNSPEC`.
const ANY_FAMILY: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// `IP_CT_DIR_ORIGINAL`.
const ORIGINAL: u8 = 0;
/// `NFT_OBJECT_CT_TIMEOUT`.
pub(super) const CT_TIMEOUT: u32 = 7;
/// `NFT_REG32_00`: registers of four bytes; the first four of them are register 1.
const FIRST_WORD: u32 = 8;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 2;
const PORT_GIVEN: u32 = 2;
const TCP_RESET: u32 = 1;
/// Verdicts: `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_RETURN`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: u32 = -3_i32 as u32;
const RETURN: u32 = -5_i32 as u32;
/// A limit is of packets a second.
const SECOND: u64 = 1;

impl Expr {
    /// A counter that starts at zero.
    pub(super) const fn counter() -> Self {
        Self::Counter(Count { packets: 0, bytes: 0 })
    }

    /// Equal, whatever was counted.
    fn same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Counter(_), Self::Counter(_))) || self == other
    }

    /// Writes the expression as an element of a rule's list.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.nest(LIST_ELEMENT, |writer| {
            writer.put_str(NAME, self.name());
            writer.nest(DATA, |writer| self.write_data(writer));
        });
    }

    fn name(&self) -> &str {
        match self {
            Self::Meta(_) | Self::SetMark => "meta",
            Self::CtStatus | Self::CtDirection | Self::Original { .. } => "ct",
            Self::Untrack => "notrack",
            Self::Timeouts(_) => "objref",
            Self::Socket(_) => "socket",
            Self::Transport { .. } | Self::Network { .. } => "payload",
            Self::DestinationType | Self::SourceType => "fib",
            Self::InSet(_) => "lookup",
            Self::ChangeSet { .. } => "dynset",
            Self::Limit { .. } => "limit",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Load(_) | Self::LoadEnd(_) => "immediate",
            Self::Accept | Self::Drop | Self::Jump(_) | Self::Return => "immediate",
            Self::Counter(_) => "counter",
            Self::Redirect | Self::RedirectRange => "redir",
            Self::Steer => "tproxy",
            Self::Reset => "reject",
            Self::Other { name, .. } => name,
        }
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Self::Meta(key) => numbers(w, &[(1, REGISTER), (2, *key as u32)]),
            Self::SetMark => numbers(w, &[(2, Meta::Mark as u32), (3, REGISTER)]),
            Self::CtStatus => numbers(w, &[(1, REGISTER), (2, CT_STATUS)]),
            Self::CtDirection => numbers(w, &[(1, REGISTER), (2, CT_DIRECTION)]),
            Self::Original { number, at } => {
                numbers(w, &[(1, word(*at)), (2, *number as u32)]);
                w.put(3, &[ORIGINAL]);
            }
            Self::Untrack => {}
            Self::Timeouts(object) => {
                w.put_be32(1, CT_TIMEOUT);
                w.put_str(2, object);
            }
            Self::Socket(key) => numbers(w, &[(1, *key as u32), (2, REGISTER)]),
            Self::Transport { offset, len, at } => {
                numbers(w, &[(1, word(*at)), (2, TRANSPORT_HEADER), (3, *offset), (4, *len)]);
            }
            Self::Network { offset, len, at } => {
                numbers(w, &[(1, word(*at)), (2, NETWORK_HEADER), (3, *offset), (4, *len)]);
            }
            Self::DestinationType => numbers(w, &[(1, REGISTER), (2, FIB_ADDRESS_TYPE), (3, FIB_DESTINATION)]),
            Self::SourceType => numbers(w, &[(1, REGISTER), (2, FIB_ADDRESS_TYPE), (3, FIB_SOURCE)]),
            Self::InSet(set) => {
                w.put_str(1, set);
                w.put_be32(2, word(0));
            }
            Self::ChangeSet { set, change } => {
                w.put_str(1, set);
                numbers(w, &[(3, *change as u32), (4, word(0))]);
            }
            Self::Limit { rate, burst } => {
                w.put(1, &rate.to_be_bytes());
                w.put(2, &SECOND.to_be_bytes());
                w.put_be32(3, *burst);
            }
            Self::Bitwise { mask, xor } => {
                let len = u32::try_from(mask.len()).expect("a register holds 16 bytes");
                numbers(w, &[(1, REGISTER), (2, REGISTER), (3, len)]);
                w.nest(4, |w| w.put(1, mask));
                w.nest(5, |w| w.put(1, xor));
            }
            Self::Cmp { equal, value } => {
                numbers(w, &[(1, REGISTER), (2, u32::from(!equal))]);
                w.nest(3, |w| w.put(1, value));
            }
            Self::Load(value) => constant(w, REGISTER, value),
            Self::LoadEnd(value) => constant(w, SECOND_REGISTER, value),
            Self::Accept => verdict(w, ACCEPT, None),
            Self::Drop => verdict(w, DROP, None),
            Self::Jump(chain) => verdict(w, JUMP, Some(chain)),
            Self::Return => verdict(w, RETURN, None),
            Self::Counter(Count { packets, bytes }) => {
                w.put(1, &bytes.to_be_bytes());
                w.put(2, &packets.to_be_bytes());
            }
            Self::Redirect => numbers(w, &[(1, REGISTER), (3, PORT_GIVEN)]),
            Self::RedirectRange => numbers(w, &[(1, REGISTER), (2, SECOND_REGISTER), (3, PORT_GIVEN)]),
            Self::Steer => numbers(w, &[(1, ANY_FAMILY), (3, REGISTER)]),
            Self::Reset => {
                w.put_be32(1, TCP_RESET);
                w.put(2, &[0]);
            }
            Self::Other { data, .. } => Attributes::nested(data).for_each(|(kind, value)| w.put(kind, value)),
        }
    }

    /// Reads one element of a rule's list.
    pub(super) fn read(element: &[u8]) -> Self {
        let element = Attributes::nested(element);
        let data = element.find(DATA).unwrap_or_default();
        // Without a copy: a table has hundreds.
        let name = element.find(NAME).and_then(|name| std::ffi::CStr::from_bytes_until_nul(name).ok()?.to_str().ok());
        let known = name.and_then(|name| Self::known(name, &Attributes::nested(data)));
        known.unwrap_or_else(|| Self::Other { name: element.text(NAME).unwrap_or_default(), data: data.to_vec() })
    }

    fn known(name: &str, data: &Attributes<'_>) -> Option<Self> {
        match name {
            "meta" => match (data.be32(1), data.be32(2)?, data.be32(3)) {
                (Some(REGISTER), key, None) => Meta::ALL.into_iter().find(|meta| *meta as u32 == key).map(Self::Meta),
                (None, 3, Some(REGISTER)) => Some(Self::SetMark),
                _ => None,
            },
            "ct" => match (data.be32(1), data.be32(2)?, data.find(3), data.be32(4)) {
                (Some(REGISTER), CT_STATUS, None, None) => Some(Self::CtStatus),
                (Some(REGISTER), CT_DIRECTION, None, None) => Some(Self::CtDirection),
                (Some(register), key, Some([ORIGINAL]), None) => {
                    let number = Original::ALL.into_iter().find(|number| *number as u32 == key)?;
                    Some(Self::Original { number, at: word_of(register)? })
                }
                _ => None,
            },
            "notrack" => data.clone().next().is_none().then_some(Self::Untrack),
            "objref" => match (data.be32(1)?, data.text(2)?, data.find(3)) {
                (CT_TIMEOUT, object, None) => Some(Self::Timeouts(object)),
                _ => None,
            },
            "socket" => match (data.be32(1)?, data.be32(2)?) {
                (0, REGISTER) => Some(Self::Socket(OfSocket::Transparent)),
                (1, REGISTER) => Some(Self::Socket(OfSocket::Mark)),
                _ => None,
            },
            "lookup" => match (data.text(1)?, word_of(data.be32(2)?)?, data.find(3), data.be32(5).unwrap_or(0)) {
                (set, 0, None, 0) => Some(Self::InSet(set)),
                _ => None,
            },
            "dynset" => {
                // Read back, no timeout is a timeout of nothing; a value, expressions and flags we never write.
                let plain = data.find(5).is_none() && data.find(7).is_none() && data.be32(9).unwrap_or(0) == 0;
                let change = match data.be32(3)? {
                    0 => Change::Add,
                    2 => Change::Delete,
                    _ => return None,
                };
                let keyed = word_of(data.be32(4)?)? == 0 && data.be64(6).unwrap_or(0) == 0;
                (plain && keyed).then_some(Self::ChangeSet { set: data.text(1)?, change })
            }
            "limit" => {
                let plain = data.be32(4).unwrap_or(0) == 0 && data.be32(5).unwrap_or(0) == 0;
                (plain && data.be64(2)? == SECOND).then_some(Self::Limit { rate: data.be64(1)?, burst: data.be32(3)? })
            }
            "payload" => {
                let at = word_of(data.be32(1)?)?;
                match (data.be32(2)?, data.be32(3)?, data.be32(4)?) {
                    (NETWORK_HEADER, offset, len) => Some(Self::Network { offset, len, at }),
                    (TRANSPORT_HEADER, offset, len) => Some(Self::Transport { offset, len, at }),
                    _ => None,
                }
            }
            "fib" => match (data.be32(1)?, data.be32(2)?, data.be32(3)?) {
                (REGISTER, FIB_ADDRESS_TYPE, FIB_DESTINATION) => Some(Self::DestinationType),
                (REGISTER, FIB_ADDRESS_TYPE, FIB_SOURCE) => Some(Self::SourceType),
                _ => None,
            },
            "bitwise" => {
                let plain = (data.be32(1)?, data.be32(2)?, data.be32(6).unwrap_or(0)) == (REGISTER, REGISTER, 0);
                let (mask, xor) = (value(data, 4)?, value(data, 5)?);
                (plain && data.find(7).is_none()).then_some(Self::Bitwise { mask, xor })
            }
            "cmp" => {
                let equal = match data.be32(2)? {
                    0 => true,
                    1 => false,
                    _ => return None,
                };
                (data.be32(1)? == REGISTER).then_some(Self::Cmp { equal, value: value(data, 3)? })
            }
            "immediate" => match data.be32(1)? {
                REGISTER => Some(Self::Load(value(data, 2)?)),
                SECOND_REGISTER => Some(Self::LoadEnd(value(data, 2)?)),
                0 => {
                    let verdict = Attributes::nested(Attributes::nested(data.find(2)?).find(2)?);
                    match (verdict.be32(1)?, verdict.text(2)) {
                        (ACCEPT, None) => Some(Self::Accept),
                        (DROP, None) => Some(Self::Drop),
                        (JUMP, Some(chain)) => Some(Self::Jump(chain)),
                        (RETURN, None) => Some(Self::Return),
                        _ => None,
                    }
                }
                _ => None,
            },
            "counter" => Some(Self::Counter(Count { bytes: data.be64(1)?, packets: data.be64(2)? })),
            "redir" => {
                // Read back, the end of the port range is the same register, whether or not it was given.
                match (data.be32(1)?, data.be32(2).unwrap_or(REGISTER), data.be32(3)?) {
                    (REGISTER, REGISTER, PORT_GIVEN) => Some(Self::Redirect),
                    (REGISTER, SECOND_REGISTER, PORT_GIVEN) => Some(Self::RedirectRange),
                    _ => None,
                }
            }
            "tproxy" => {
                ((data.be32(1)?, data.find(2), data.be32(3)?) == (ANY_FAMILY, None, REGISTER)).then_some(Self::Steer)
            }
            "reject" => (data.be32(1)? == TCP_RESET && data.find(2).unwrap_or(&[0]) == [0]).then_some(Self::Reset),
            _ => None,
        }
    }
}

/// Whether two rules do the same, whatever they counted.
pub(super) fn same(left: &[Expr], right: &[Expr]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| left.same(right))
}

fn numbers(writer: &mut Writer, fields: &[(u16, u32)]) {
    for (kind, number) in fields {
        writer.put_be32(*kind, *number);
    }
}

/// The register of a word of the flow's numbers.
fn word(at: u8) -> u32 {
    FIRST_WORD + u32::from(at)
}

/// The kernel names every fourth word as the register of sixteen bytes that begins there.
fn word_of(register: u32) -> Option<u8> {
    let at = match register {
        1..=4 => (register - 1) * 4,
        FIRST_WORD..=23 => register - FIRST_WORD,
        _ => return None,
    };
    u8::try_from(at).ok()
}

fn verdict(writer: &mut Writer, code: u32, chain: Option<&str>) {
    writer.put_be32(1, 0); // The verdict register.
    writer.nest(2, |w| {
        w.nest(2, |w| {
            w.put_be32(1, code);
            if let Some(chain) = chain {
                w.put_str(2, chain);
            }
        });
    });
}

fn constant(writer: &mut Writer, register: u32, value: &[u8]) {
    writer.put_be32(1, register);
    writer.nest(2, |writer| writer.put(1, value));
}

fn value(data: &Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    data.find(kind).and_then(|nested| Attributes::nested(nested).find(1)).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn back(expr: &Expr) -> Expr {
        let mut writer = Writer::default();
        expr.write(&mut writer);
        let bytes = writer.into_bytes();
        let (_, element) = Attributes::nested(&bytes).next().expect("one element was written");
        Expr::read(element)
    }

    fn any_expr() -> impl Strategy<Value = Expr> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..=16);
        let name = || "[a-z]{1,8}".prop_map(String::from);
        prop_oneof![
            proptest::sample::select(&Meta::ALL[..]).prop_map(Expr::Meta),
            prop_oneof![Just(OfSocket::Transparent), Just(OfSocket::Mark)].prop_map(Expr::Socket),
            prop_oneof![Just(Expr::Accept), Just(Expr::Drop), Just(Expr::Return), name().prop_map(Expr::Jump)],
            prop_oneof![
                Just(Expr::CtStatus),
                Just(Expr::CtDirection),
                Just(Expr::Untrack),
                name().prop_map(Expr::Timeouts)
            ],
            (proptest::sample::select(&Original::ALL[..]), 0..16_u8)
                .prop_map(|(number, at)| Expr::Original { number, at }),
            (name(), prop_oneof![Just(Change::Add), Just(Change::Delete)])
                .prop_map(|(set, change)| Expr::ChangeSet { set, change }),
            name().prop_map(Expr::InSet),
            (any::<u64>(), any::<u32>()).prop_map(|(rate, burst)| Expr::Limit { rate, burst }),
            prop_oneof![Just(Expr::DestinationType), Just(Expr::SourceType)],
            Just(Expr::SetMark),
            Just(Expr::Redirect),
            Just(Expr::RedirectRange),
            Just(Expr::Steer),
            Just(Expr::Reset),
            (any::<u32>(), any::<u32>(), 0..16_u8).prop_map(|(offset, len, at)| Expr::Transport { offset, len, at }),
            (any::<u32>(), any::<u32>(), 0..16_u8).prop_map(|(offset, len, at)| Expr::Network { offset, len, at }),
            bytes().prop_map(|mask| Expr::Bitwise { xor: vec![0; mask.len()], mask }),
            (any::<bool>(), bytes()).prop_map(|(equal, value)| Expr::Cmp { equal, value }),
            bytes().prop_map(Expr::Load),
            bytes().prop_map(Expr::LoadEnd),
            (any::<u64>(), any::<u64>()).prop_map(|(packets, bytes)| Expr::Counter(Count { packets, bytes })),
        ]
    }

    proptest! {
        #[test]
        fn every_expression_is_read_back_as_it_was_written(expr in any_expr()) {
            prop_assert_eq!(back(&expr), expr);
        }

        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Expr::read(&bytes);
        }
    }

    #[test]
    fn an_expression_that_we_never_write_is_kept_as_it_is() {
        let mut writer = Writer::default();
        writer.put_be32(1, 7);
        let other = Expr::Other { name: "quota".to_owned(), data: writer.into_bytes() };
        assert_eq!(back(&other), other);
        assert!(!same(&[other], &[Expr::Accept]));
    }
}
