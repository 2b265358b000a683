//! Where the bytes of one connection are counted, found once when it is set up.

use std::sync::Arc;

use super::labels::{End, Far, Reporter};
use super::meter::{Meter, Scope};
use super::series::Cells;

/// One end's counters of one connection, of the thread that serves it.
#[derive(Debug)]
pub struct Tap {
    pub(super) cells: Arc<Cells>,
    pub(super) meter: Arc<Meter>,
    pub(super) scope: Scope,
    pub(super) own: End,
    pub(super) far: Far,
}

impl Tap {
    /// Bytes moved from the client to the destination.
    pub fn to_destination(&self, bytes: u64) {
        // Istio's names are the server's view, at both ends (istio/istio#32399).
        self.cells.received.add(bytes);
        self.meter.bytes(self.scope, self.far.reporter == Reporter::Source, bytes);
    }

    /// Bytes moved from the destination to the client.
    pub fn to_client(&self, bytes: u64) {
        self.cells.sent.add(bytes);
        self.meter.bytes(self.scope, self.far.reporter == Reporter::Destination, bytes);
    }

    /// Its copy buffers had room for `before` bytes and now have for `now`.
    pub fn buffers(&self, before: usize, now: usize) {
        self.meter.buffers(before, now);
    }
}
