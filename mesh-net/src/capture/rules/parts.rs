//! What rules are made of: one match or one verdict each, and what is the same for both families.

use mesh_model::Mark;
use mesh_model::ports::{INBOUND, LANDING, OUTBOUND, TUNNEL};

use super::{FWMARK, Family, REFUSE, Rule, rule};
use crate::capture::expr::{Change, Expr, Meta, OfSocket, Original};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
const FLAGS: u8 = 0x17; // fin | syn | rst | ack
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// `IPS_DST_NAT`.
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// `IP_CT_DIR_REPLY`.
const REPLY: u8 = 1;

pub(super) fn equal(value: &[u8]) -> Expr {
    Expr::Cmp { equal: true, value: value.to_vec() }
}

fn unequal(value: &[u8]) -> Expr {
    Expr::Cmp { equal: false, value: value.to_vec() }
}

pub(super) fn bits(mask: u32, xor: u32) -> Expr {
    Expr::Bitwise { mask: mask.to_ne_bytes().to_vec(), xor: xor.to_ne_bytes().to_vec() }
}

pub(super) fn on(side: Meta, interface: u32) -> Vec<Expr> {
    vec![Expr::Meta(side), equal(&interface.to_ne_bytes())]
}

pub(super) fn not_on(side: Meta, interface: u32) -> Vec<Expr> {
    vec![Expr::Meta(side), unequal(&interface.to_ne_bytes())]
}

/// By a bridge, as `rtnl_link_ops.kind` names it.
pub(super) fn by_bridge() -> Vec<Expr> {
    vec![Expr::Meta(Meta::InputKind), equal(b"bridge\0\0\0\0\0\0\0\0\0\0")]
}

pub(super) fn marked(mark: u32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark), bits(Mark::MASK, 0), equal(&mark.to_ne_bytes())]
}

/// Replaces the packet's mark but for the bit that is not ours.
pub(super) fn mark(mark: u32) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark), bits(!Mark::MASK, mark), Expr::SetMark]
}

pub(super) fn transport(is: bool, protocol: u8) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Transport), Expr::Cmp { equal: is, value: vec![protocol] }]
}

pub(super) fn tcp() -> Vec<Expr> {
    transport(true, TCP)
}

fn flags(mask: u8) -> Vec<Expr> {
    let only = Expr::Bitwise { mask: vec![mask], xor: vec![0] };
    [tcp(), vec![Expr::Transport { offset: 13, len: 1, at: 0 }, only]].concat()
}

/// The first packet of a connection.
pub(super) fn syn() -> Vec<Expr> {
    [flags(FLAGS), vec![equal(&[SYN])]].concat()
}

pub(super) fn not_syn() -> Vec<Expr> {
    [flags(FLAGS), vec![unequal(&[SYN])]].concat()
}

/// The first packet of either side.
pub(super) fn opening() -> Vec<Expr> {
    [flags(SYN), vec![equal(&[SYN])]].concat()
}

pub(super) fn reset() -> Vec<Expr> {
    [flags(RST), vec![equal(&[RST])]].concat()
}

fn destination_port() -> Expr {
    Expr::Transport { offset: 2, len: 2, at: 0 }
}

pub(super) fn to_port(port: u16) -> Vec<Expr> {
    vec![destination_port(), equal(&port.to_be_bytes())]
}

pub(super) fn from_port(port: u16) -> Vec<Expr> {
    vec![Expr::Transport { offset: 0, len: 2, at: 0 }, equal(&port.to_be_bytes())]
}

pub(super) fn not_to_port(port: u16) -> Vec<Expr> {
    vec![destination_port(), unequal(&port.to_be_bytes())]
}

pub(super) fn to_landing() -> Vec<Expr> {
    [tcp(), landing(destination_port())].concat()
}

pub(super) fn from_landing() -> Vec<Expr> {
    [tcp(), landing(Expr::Transport { offset: 0, len: 2, at: 0 })].concat()
}

/// From a port near those of ours whose connections may have been translated: one question instead of one for each of them.
pub(super) fn from_about_ours() -> Vec<Expr> {
    [tcp(), about_ours(Expr::Transport { offset: 0, len: 2, at: 0 })].concat()
}

/// To a port near those of ours.
pub(super) fn to_about_ours() -> Vec<Expr> {
    [tcp(), about_ours(destination_port())].concat()
}

fn about_ours(port: Expr) -> Vec<Expr> {
    let near = Expr::Bitwise { mask: ABOUT_OURS.mask.to_be_bytes().to_vec(), xor: vec![0, 0] };
    vec![port, near, equal(&ABOUT_OURS.ports.to_be_bytes())]
}

struct Block {
    ports: u16,
    mask: u16,
}

/// 14848 to 15359.
const ABOUT_OURS: Block = Block { ports: 0x3a00, mask: 0xfe00 };
// A port outside would be forgotten without a word.
const _: () = {
    let ours = [OUTBOUND, INBOUND, TUNNEL, *LANDING.start(), *LANDING.end()];
    let mut at = 0;
    while at < ours.len() {
        assert!(ours[at] & ABOUT_OURS.mask == ABOUT_OURS.ports);
        at += 1;
    }
};

fn landing(port: Expr) -> Vec<Expr> {
    let mask = !(LANDING.end() - LANDING.start());
    let block = Expr::Bitwise { mask: mask.to_be_bytes().to_vec(), xor: vec![0, 0] };
    vec![port, block, equal(&LANDING.start().to_be_bytes())]
}

pub(super) fn to_self() -> Vec<Expr> {
    vec![Expr::DestinationType, equal(&LOCAL.to_ne_bytes())]
}

pub(super) fn to_others() -> Vec<Expr> {
    vec![Expr::DestinationType, unequal(&LOCAL.to_ne_bytes())]
}

pub(super) fn from_self() -> Vec<Expr> {
    vec![Expr::SourceType, equal(&LOCAL.to_ne_bytes())]
}

pub(super) fn from_others() -> Vec<Expr> {
    vec![Expr::SourceType, unequal(&LOCAL.to_ne_bytes())]
}

pub(super) fn translated() -> Vec<Expr> {
    vec![Expr::CtStatus, bits(DESTINATION_TRANSLATED, 0), unequal(&0_u32.to_ne_bytes())]
}

/// Of a socket that can have a mark, and has this one.
pub(super) fn of_socket(mark: Mark) -> Vec<Expr> {
    vec![Expr::Socket(OfSocket::Mark), bits(Mark::MASK, 0), equal(&mark.value().to_ne_bytes())]
}

/// Of a socket that can have a mark, whatever that is: a connection, a listener.
pub(super) fn of_any_socket() -> Vec<Expr> {
    vec![Expr::Socket(OfSocket::Mark), bits(0, 0), equal(&0_u32.to_ne_bytes())]
}

pub(super) fn of_transparent_socket() -> Vec<Expr> {
    vec![Expr::Socket(OfSocket::Transparent), equal(&[1])]
}

/// Of any socket at all, also of one that is little more than a note.
pub(super) fn of_any_note() -> Vec<Expr> {
    vec![Expr::Socket(OfSocket::Transparent), Expr::Bitwise { mask: vec![0], xor: vec![0] }, equal(&[0])]
}

/// RFC 8200, 3: the lower 20 bits of the first word.
pub(super) fn with_flow_label() -> Vec<Expr> {
    let label = Expr::Bitwise { mask: vec![0, 0x0f, 0xff, 0xff], xor: vec![0; 4] };
    vec![Expr::Network { offset: 0, len: 4, at: 0 }, label, unequal(&[0; 4])]
}

/// Which end of a flow is the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// Loads the flow of a TCP packet of this family as the pod's socket has it: own address, own port, far address, far port.
pub(super) fn flow(family: Family, way: Way) -> Vec<Expr> {
    let (source, destination, len) = match family {
        // Where addresses are in the header: RFC 791, 3.1, and RFC 8200, 3.
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    let words = u8::try_from(len / 4).expect("an address has one word or four");
    let (own, far) = match way {
        Way::Out => ((source, 0), (destination, 2)),
        Way::In => ((destination, 2), (source, 0)),
    };
    vec![
        Expr::Network { offset: own.0, len, at: 0 },
        Expr::Transport { offset: own.1, len: 2, at: words },
        Expr::Network { offset: far.0, len, at: words + 1 },
        Expr::Transport { offset: far.1, len: 2, at: 2 * words + 1 },
    ]
}

/// An answer to a flow of this family whose destination somebody translated: its source is translated back only behind our chains
/// (`nf_nat_inet_fn`: of an answer, where the packet enters a socket). Loads the flow as the pod's socket has it, see [`flow`].
pub(super) fn translated_answer(family: Family) -> Vec<Expr> {
    let (source, destination, words) = match family {
        Family::V4 => (Original::SourceV4, Original::DestinationV4, 1),
        Family::V6 => (Original::SourceV6, Original::DestinationV6, 4),
    };
    let load = |number, at| Expr::Original { number, at };
    let numbers = vec![
        load(source, 0),
        load(Original::SourcePort, words),
        load(destination, words + 1),
        load(Original::DestinationPort, 2 * words + 1),
    ];
    [of_family(family), translated(), vec![Expr::CtDirection, equal(&[REPLY])], numbers].concat()
}

pub(super) fn of_family(family: Family) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Family), equal(&[family.number()])]
}

pub(super) fn in_set(set: &str) -> Vec<Expr> {
    vec![Expr::InSet(set.to_owned())]
}

pub(super) fn change(set: &str, change: Change) -> Vec<Expr> {
    vec![Expr::ChangeSet { set: set.to_owned(), change }]
}

pub(super) fn count() -> Vec<Expr> {
    vec![Expr::counter()]
}

pub(super) fn accept() -> Vec<Expr> {
    vec![Expr::counter(), Expr::Accept]
}

pub(super) fn drop() -> Vec<Expr> {
    vec![Expr::counter(), Expr::Drop]
}

/// To where rules of that kind of packet stand together. Those count.
pub(super) fn aside(chain: &str) -> Vec<Expr> {
    vec![Expr::Jump(chain.to_owned())]
}

pub(super) fn jump(chain: &str) -> Vec<Expr> {
    vec![Expr::counter(), Expr::Jump(chain.to_owned())]
}

pub(super) fn refuse() -> Vec<Expr> {
    jump(REFUSE)
}

pub(super) fn land() -> Vec<Expr> {
    translate_to(*LANDING.start(), *LANDING.end())
}

/// Where the listener itself is: nobody has to steer it.
pub(super) fn land_at_listener() -> Vec<Expr> {
    translate_to(INBOUND, INBOUND)
}

fn translate_to(first: u16, last: u16) -> Vec<Expr> {
    let [first, last] = [first, last].map(|port| port.to_be_bytes().to_vec());
    vec![Expr::counter(), Expr::Load(first), Expr::LoadEnd(last), Expr::RedirectRange]
}

pub(super) fn steer(port: u16) -> Vec<Expr> {
    vec![Expr::Load(port.to_be_bytes().to_vec()), Expr::Steer, Expr::counter(), Expr::Accept]
}

pub(super) fn untracked() -> Vec<Expr> {
    vec![Expr::Untrack, Expr::Accept]
}

/// The same for each family; the name gets the family's.
pub(super) fn each<const N: usize>(name: &str, parts: impl Fn(Family) -> [Vec<Expr>; N]) -> [Rule; 2] {
    Family::BOTH.map(|family| rule(format!("{name}-{}", family.name()), parts(family)))
}

/// Steers what is captured by its flow.
pub(super) fn still_captured(family: Family) -> [Vec<Expr>; 5] {
    [known(family, Way::Out), in_set(family.captured()), count(), mark(FWMARK), untracked()]
}

/// A TCP packet of this family, its flow in the registers.
pub(super) fn known(family: Family, way: Way) -> Vec<Expr> {
    [of_family(family), flow(family, way)].concat()
}

pub(super) fn put(set: &str) -> Vec<Expr> {
    [change(set, Change::Add), count()].concat()
}

pub(super) fn take(set: &str) -> Vec<Expr> {
    [change(set, Change::Delete), count()].concat()
}
