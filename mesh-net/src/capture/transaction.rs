//! One transaction of nf_tables by netlink (`nfnetlink`): all of it, or nothing.

use super::Error;
use crate::netlink::{ACK, Socket, Writer};

const SUBSYSTEM: u16 = 10 << 8; // NFNL_SUBSYS_NFTABLES
pub(super) const NEW_TABLE: u16 = SUBSYSTEM;
pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM | 2;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
pub(super) const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM | 8;
pub(super) const NEW_SET: u16 = SUBSYSTEM | 9;
pub(super) const GET_SET: u16 = SUBSYSTEM | 10;
pub(super) const DELETE_SET: u16 = SUBSYSTEM | 11;
pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM | 13;
pub(super) const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
pub(super) const NEW_OBJECT: u16 = SUBSYSTEM | 18;
pub(super) const GET_OBJECT: u16 = SUBSYSTEM | 19;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `struct nfgenmsg`: family, version, resource id.
pub(super) const FIXED: usize = 4;
pub(super) const INET: [u8; FIXED] = [1, 0, 0, 0];
const BATCH: [u8; FIXED] = [0, 0, 0, 10];

/// A transaction being written. Remembers what each message is about, for the message of an error.
pub(super) struct Batch {
    writer: Writer,
    /// Sequence number of the next message.
    next: u32,
    about: Vec<String>,
}

impl Batch {
    pub(super) fn add(&mut self, what: impl Into<String>, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        // One acknowledgement for all; kernels before 6.10 give none for the end of a batch.
        let ack = if self.about.len() == 1 { ACK } else { 0 };
        self.writer.message(kind, flags | ack, self.next, &INET, body);
        self.next = self.next.wrapping_add(1);
        self.about.push(what.into());
    }
}

/// Sends what `fill` adds as one transaction.
pub(super) fn transaction(socket: &mut Socket, fill: impl FnOnce(&mut Batch)) -> Result<(), Error> {
    /// More messages than any of our transactions has (a pod that excludes a thousand ports has some 3,000 rules); sequence numbers are set aside for them.
    const ROOM: u32 = 8192;
    let first = socket.sequence(ROOM);
    let mut batch = Batch { writer: Writer::default(), next: first.wrapping_add(1), about: vec!["begin".to_owned()] };
    batch.writer.message(BATCH_BEGIN, 0, first, &BATCH, |_| {});
    fill(&mut batch);
    let last = batch.next;
    batch.writer.message(BATCH_END, 0, last, &BATCH, |_| {});
    let (about, bytes) = (batch.about, batch.writer.into_bytes());
    socket.batch(&bytes, first, first.wrapping_add(1), last).map_err(|(seq, source)| {
        let what = about.get(seq.wrapping_sub(first) as usize).map_or("commit", String::as_str);
        Error::Kernel { what: format!("change table inet culvert: {what}"), source }
    })
}
