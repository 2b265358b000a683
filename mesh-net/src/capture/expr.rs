//! The nf_tables expressions that our rules are made of, and their netlink form.
//!
//! Everything works on register 1, but the end of a range, which is in register 2. An expression that is read back and is not exactly one of these becomes [`Expr::Other`],
//! which equals none of ours: what we do not understand is a difference. Numbers: `linux/netfilter/nf_tables.h`.

use crate::netlink::{Attributes, Writer};

/// One expression. Values in registers: marks, interface numbers and address types in host order, ports in network order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// Load a property of the packet.
    Meta(Meta),
    /// Set the packet's mark.
    SetMark,
    /// Load a property of the connection.
    Ct(Ct),
    /// Set the connection's mark.
    SetCtMark,
    /// Put the original direction of the connection into a conntrack zone.
    SetOriginalZone,
    /// Load bytes of the transport header.
    Transport {
        /// From where.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Load bytes of the network header.
    Network {
        /// From where.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Load the type of the destination address, by the local table alone: neither the mark nor an interface plays a part.
    DestinationType,
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
}

/// `enum nft_ct_keys`, those we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Ct {
    Direction = 1,
    Mark = 3,
}

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const REGISTER: u32 = 1;
const SECOND_REGISTER: u32 = 2;
/// `NFPROTO_UNSPEC`.
const ANY_FAMILY: u32 = 0;
const CT_ZONE: u32 = 17;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const PORT_GIVEN: u32 = 2;
const TCP_RESET: u32 = 1;
const ACCEPT: u32 = 1;

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
            Self::Ct(_) | Self::SetCtMark | Self::SetOriginalZone => "ct",
            Self::Transport { .. } | Self::Network { .. } => "payload",
            Self::DestinationType => "fib",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Load(_) | Self::LoadEnd(_) | Self::Accept => "immediate",
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
            Self::Ct(key) => numbers(w, &[(1, REGISTER), (2, *key as u32)]),
            Self::SetCtMark => numbers(w, &[(2, Ct::Mark as u32), (4, REGISTER)]),
            Self::SetOriginalZone => {
                numbers(w, &[(2, CT_ZONE), (4, REGISTER)]);
                w.put(3, &[0]);
            }
            Self::Transport { offset, len } => {
                numbers(w, &[(1, REGISTER), (2, TRANSPORT_HEADER), (3, *offset), (4, *len)]);
            }
            Self::Network { offset, len } => {
                numbers(w, &[(1, REGISTER), (2, NETWORK_HEADER), (3, *offset), (4, *len)]);
            }
            Self::DestinationType => numbers(w, &[(1, REGISTER), (2, FIB_ADDRESS_TYPE), (3, FIB_DESTINATION)]),
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
            Self::Accept => {
                w.put_be32(1, 0); // The verdict register.
                w.nest(2, |w| w.nest(2, |w| w.put_be32(1, ACCEPT)));
            }
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
        let name = element.text(NAME).unwrap_or_default();
        let data = element.find(DATA).unwrap_or_default();
        Self::known(&name, &Attributes::nested(data)).unwrap_or_else(|| Self::Other { name, data: data.to_vec() })
    }

    fn known(name: &str, data: &Attributes<'_>) -> Option<Self> {
        match name {
            "meta" => match (data.be32(1), data.be32(2)?, data.be32(3)) {
                (Some(REGISTER), 3, None) => Some(Self::Meta(Meta::Mark)),
                (Some(REGISTER), 4, None) => Some(Self::Meta(Meta::InputInterface)),
                (Some(REGISTER), 5, None) => Some(Self::Meta(Meta::OutputInterface)),
                (Some(REGISTER), 15, None) => Some(Self::Meta(Meta::Family)),
                (Some(REGISTER), 16, None) => Some(Self::Meta(Meta::Transport)),
                (None, 3, Some(REGISTER)) => Some(Self::SetMark),
                _ => None,
            },
            "ct" => match (data.be32(1), data.be32(2)?, data.find(3), data.be32(4)) {
                (Some(REGISTER), 1, None, None) => Some(Self::Ct(Ct::Direction)),
                (Some(REGISTER), 3, None, None) => Some(Self::Ct(Ct::Mark)),
                (None, 3, None, Some(REGISTER)) => Some(Self::SetCtMark),
                (None, CT_ZONE, Some([0]), Some(REGISTER)) => Some(Self::SetOriginalZone),
                _ => None,
            },
            "payload" => match (data.be32(1)?, data.be32(2)?, data.be32(3)?, data.be32(4)?) {
                (REGISTER, NETWORK_HEADER, offset, len) => Some(Self::Network { offset, len }),
                (REGISTER, TRANSPORT_HEADER, offset, len) => Some(Self::Transport { offset, len }),
                _ => None,
            },
            "fib" => ((data.be32(1)?, data.be32(2)?, data.be32(3)?) == (REGISTER, FIB_ADDRESS_TYPE, FIB_DESTINATION))
                .then_some(Self::DestinationType),
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
                    (verdict.be32(1)? == ACCEPT).then_some(Self::Accept)
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
        prop_oneof![
            prop_oneof![
                Just(Meta::Mark),
                Just(Meta::InputInterface),
                Just(Meta::OutputInterface),
                Just(Meta::Family),
                Just(Meta::Transport)
            ]
            .prop_map(Expr::Meta),
            prop_oneof![Just(Ct::Direction), Just(Ct::Mark)].prop_map(Expr::Ct),
            Just(Expr::SetMark),
            Just(Expr::SetCtMark),
            Just(Expr::SetOriginalZone),
            Just(Expr::DestinationType),
            Just(Expr::Accept),
            Just(Expr::Redirect),
            Just(Expr::RedirectRange),
            Just(Expr::Steer),
            Just(Expr::Reset),
            (any::<u32>(), any::<u32>()).prop_map(|(offset, len)| Expr::Transport { offset, len }),
            (any::<u32>(), any::<u32>()).prop_map(|(offset, len)| Expr::Network { offset, len }),
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
        let other = Expr::Other { name: "limit".to_owned(), data: writer.into_bytes() };
        assert_eq!(back(&other), other);
        assert!(!same(&[other], &[Expr::Accept]));
    }
}
