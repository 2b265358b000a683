//! What rules are made of: one match or one verdict each.

use mesh_model::Mark;
use mesh_model::ports::LANDING;

use crate::capture::expr::{Expr, Meta};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
const FLAGS: u8 = 0x17; // fin | syn | rst | ack
const SYN: u8 = 0x02;

pub(super) fn equal(value: &[u8]) -> Expr {
    Expr::Cmp { equal: true, value: value.to_vec() }
}

pub(super) fn bits(mask: u32, xor: u32) -> Expr {
    Expr::Bitwise { mask: mask.to_ne_bytes().to_vec(), xor: xor.to_ne_bytes().to_vec() }
}

pub(super) fn on(side: Meta, interface: u32) -> Vec<Expr> {
    vec![Expr::Meta(side), equal(&interface.to_ne_bytes())]
}

pub(super) fn marked(mark: Mark) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Mark), bits(Mark::MASK, 0), equal(&mark.value().to_ne_bytes())]
}

pub(super) fn transport(is: bool, protocol: u8) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Transport), Expr::Cmp { equal: is, value: vec![protocol] }]
}

fn flags() -> Vec<Expr> {
    let only = Expr::Bitwise { mask: vec![FLAGS], xor: vec![0] };
    [transport(true, TCP), vec![Expr::Transport { offset: 13, len: 1 }, only]].concat()
}

pub(super) fn syn() -> Vec<Expr> {
    [flags(), vec![equal(&[SYN])]].concat()
}

pub(super) fn tcp_but_not_syn() -> Vec<Expr> {
    [flags(), vec![Expr::Cmp { equal: false, value: vec![SYN] }]].concat()
}

pub(super) fn to_port(port: u16) -> Vec<Expr> {
    vec![Expr::Transport { offset: 2, len: 2 }, equal(&port.to_be_bytes())]
}

pub(super) fn landed() -> Vec<Expr> {
    let mask = !(LANDING.end() - LANDING.start());
    let block = Expr::Bitwise { mask: mask.to_be_bytes().to_vec(), xor: vec![0, 0] };
    let port = Expr::Transport { offset: 2, len: 2 };
    [transport(true, TCP), vec![port, block, equal(&LANDING.start().to_be_bytes())]].concat()
}

pub(super) fn to_self() -> Vec<Expr> {
    vec![Expr::DestinationType, equal(&LOCAL.to_ne_bytes())]
}

pub(super) fn accept() -> Vec<Expr> {
    vec![Expr::counter(), Expr::Accept]
}

pub(super) fn refuse() -> Vec<Expr> {
    vec![Expr::counter(), Expr::Reset]
}

pub(super) fn redirect(port: u16) -> Vec<Expr> {
    vec![Expr::counter(), Expr::Load(port.to_be_bytes().to_vec()), Expr::Redirect]
}

pub(super) fn land() -> Vec<Expr> {
    let [first, last] = [LANDING.start(), LANDING.end()].map(|port| port.to_be_bytes().to_vec());
    vec![Expr::counter(), Expr::Load(first), Expr::LoadEnd(last), Expr::RedirectRange]
}

pub(super) fn steer(port: u16) -> Vec<Expr> {
    vec![Expr::Load(port.to_be_bytes().to_vec()), Expr::Steer]
}
