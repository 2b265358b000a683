//! One connection as the whole worker sees it: its id, what is known of it, how many bytes it has moved, and the switch that
//! ends it from outside. Shared (`Arc`) between the task that moves its bytes, the registry of live connections and admin.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use futures_util::task::AtomicWaker;
use mesh_model::policy::{Permit, PolicyKey};
use mesh_model::{ClientAddr, OrigDst, Reason};

use super::metrics::Tap;

/// The id that both ends of a connection log: the trace id of `traceparent` (W3C Trace Context, 3.2.2.3), never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// A new one. Random, so that ids of different nodes never meet.
    pub fn random() -> Self {
        Self(rand::random::<u128>().max(1))
    }

    /// The trace id of a `traceparent` header: `00-<32 hex>-<16 hex>-<2 hex>`. `None` for anything else and for all zeros.
    pub fn of_traceparent(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 || !hex(trace) || !hex(span) {
            return None;
        }
        u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0).map(Self)
    }

    /// The number itself.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The header that carries this id to the far proxy; not sampled, a span id of its own.
    pub fn traceparent(self) -> String {
        format!("00-{self}-{:016x}-00", rand::random::<u64>().max(1))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Through which listener a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// 15001: from the pod's application.
    Outbound,
    /// 15006: to the pod, without a tunnel.
    Inbound,
    /// 15008: to the pod, through a tunnel.
    Tunnel,
}

impl Direction {
    /// All of them, for metrics that must exist at zero.
    pub const ALL: [Direction; 3] = [Direction::Outbound, Direction::Inbound, Direction::Tunnel];

    /// The spelling in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Tunnel => "inbound-tunnel",
        }
    }
}

/// Why a connection is ended from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutCause {
    /// The reason that is logged and counted.
    pub reason: Reason,
    /// The policy that now says no.
    pub policy: Option<PolicyKey>,
}

/// A step on a connection's way to its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its thread took it up: until then it waited in a queue of ours.
    Served,
    /// Policy said yes.
    Judged,
    /// The far end is reached.
    Connected,
    /// The first byte was passed, either way.
    FirstByte,
}

impl Phase {
    /// All of them, in the order in which they are reached.
    pub const ALL: [Phase; 4] = [Phase::Served, Phase::Judged, Phase::Connected, Phase::FirstByte];

    /// The key in the access log: microseconds since accept.
    pub const fn key(self) -> &'static str {
        match self {
            Phase::Served => "served_us",
            Phase::Judged => "judged_us",
            Phase::Connected => "connected_us",
            Phase::FirstByte => "first_byte_us",
        }
    }
}

/// When each phase was reached: microseconds since accept, 0 = not reached. Relaxed: each is written by the connection's own thread,
/// and whoever reads them elsewhere (admin) wants a figure, not an order.
#[derive(Debug, Default)]
pub struct Phases([AtomicU64; Phase::ALL.len()]);

impl Phases {
    /// Microseconds from accept to this phase; `None`: not reached.
    pub fn at(&self, phase: Phase) -> Option<u64> {
        Some(self.0[phase as usize].load(Ordering::Relaxed)).filter(|micros| *micros != 0)
    }

    /// The first time stays: a second endpoint that is tried was judged by the same rules.
    fn stamp(&self, phase: Phase, since: Instant) {
        let slot = &self.0[phase as usize];
        if slot.load(Ordering::Relaxed) == 0 {
            let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            // Reached within the first microsecond is still reached.
            slot.store(micros.max(1), Ordering::Relaxed);
        }
    }
}

/// The switch: set once from any thread, seen by the task that moves the bytes.
#[derive(Debug, Default)]
struct Cut {
    cause: OnceLock<CutCause>,
    waker: AtomicWaker,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Shared with the other end.
    pub id: ConnectionId,
    /// Where it came in.
    pub direction: Direction,
    /// Who called, as an address.
    pub client: ClientAddr,
    /// Where the caller wanted to go; `None` when the kernel did not say.
    pub destination: Option<OrigDst>,
    /// When it was accepted.
    pub started: SystemTime,
    /// The same, for durations.
    pub accepted: Instant,
    phases: Phases,
    permit: OnceLock<Permit>,
    // One per end that counts it: two when both ends are pods of this node.
    taps: OnceLock<Vec<Arc<Tap>>>,
    to_destination: AtomicU64,
    to_client: AtomicU64,
    cut: Cut,
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(id: ConnectionId, direction: Direction, client: ClientAddr, destination: Option<OrigDst>) -> Self {
        Self {
            id,
            direction,
            client,
            destination,
            started: SystemTime::now(),
            accepted: Instant::now(),
            phases: Phases::default(),
            permit: OnceLock::new(),
            taps: OnceLock::new(),
            to_destination: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            cut: Cut::default(),
        }
    }

    /// The same, accepted earlier: it waited for its thread since.
    pub fn since(mut self, accepted: Instant) -> Self {
        self.started = self.started.checked_sub(accepted.elapsed()).unwrap_or(self.started);
        self.accepted = accepted;
        self
    }

    /// It has come this far.
    pub fn reached(&self, phase: Phase) {
        self.phases.stamp(phase, self.accepted);
    }

    /// When it reached which phase.
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Ends the connection: both ends are reset. The first cause stays.
    pub fn cut(&self, cause: CutCause) {
        if self.cut.cause.set(cause).is_ok() {
            self.cut.waker.wake();
        }
    }

    /// Ready with the cause once [`Connection::cut`] was called. One waiting task at a time.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<CutCause> {
        if let Some(cause) = self.cut.cause.get() {
            return Poll::Ready(cause.clone());
        }
        self.cut.waker.register(cx.waker());
        // Set between the look and the registration: look again.
        self.cut.cause.get().map_or(Poll::Pending, |cause| Poll::Ready(cause.clone()))
    }

    /// Resolves once the connection is cut. Safe to drop half-way.
    pub async fn was_cut(&self) -> CutCause {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }

    /// The permit it was allowed with, for those judged on this node.
    pub fn permit(&self) -> Option<&Permit> {
        self.permit.get()
    }

    /// Remembers the permit, so that the connection can be judged again.
    pub fn permitted(&self, permit: Permit) {
        // A connection is judged once; a second permit would be a bug and the first stays in force.
        let _ = self.permit.set(permit);
    }

    /// From now on bytes count there too.
    pub fn meter(&self, taps: impl IntoIterator<Item = Arc<Tap>>) {
        let _ = self.taps.set(taps.into_iter().collect());
    }

    fn taps(&self) -> &[Arc<Tap>] {
        self.taps.get().map_or(&[], Vec::as_slice)
    }

    /// Its copy buffers, which had room for `before` bytes, have room for `now`.
    pub fn buffers(&self, before: usize, now: usize) {
        // Those of a connection between two pods of this node are the caller's.
        if let Some(tap) = self.taps().first() {
            tap.buffers(before, now);
        }
    }

    /// Bytes moved from the client to the destination.
    pub fn sent(&self, bytes: usize) {
        if self.to_destination.fetch_add(bytes as u64, Ordering::Relaxed) == 0 {
            self.reached(Phase::FirstByte);
        }
        for tap in self.taps() {
            tap.to_destination(bytes as u64);
        }
    }

    /// Bytes moved from the destination to the client.
    pub fn received(&self, bytes: usize) {
        if self.to_client.fetch_add(bytes as u64, Ordering::Relaxed) == 0 {
            self.reached(Phase::FirstByte);
        }
        for tap in self.taps() {
            tap.to_client(bytes as u64);
        }
    }

    /// (to the destination, to the client).
    pub fn bytes(&self) -> (u64, u64) {
        (self.to_destination.load(Ordering::Relaxed), self.to_client.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_traceparent() {
        let id = ConnectionId::random();
        assert_eq!(ConnectionId::of_traceparent(&id.traceparent()), Some(id));
    }

    #[test]
    fn a_header_that_is_not_a_traceparent_gives_no_id() {
        let zero = format!("00-{:032}-{:016}-00", 0, 1);
        let upper = "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01";
        let future = "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for header in ["", "00", "00-1-1-00", &zero, upper, future, "00-4bf92f3577b34da6a3ce929d0e0e4736"] {
            assert_eq!(ConnectionId::of_traceparent(header), None, "{header:?}");
        }
    }

    #[test]
    fn phases_count_from_accept_and_the_first_time_stays() {
        let client = ClientAddr::new(([127, 0, 0, 1], 1).into());
        let early = Instant::now().checked_sub(std::time::Duration::from_millis(20)).expect("the machine is up");
        let connection = Connection::new(ConnectionId::random(), Direction::Inbound, client, None).since(early);
        assert!(Phase::ALL.iter().all(|phase| connection.phases().at(*phase).is_none()));
        connection.reached(Phase::Served);
        let served = connection.phases().at(Phase::Served).expect("reached");
        assert!(served >= 20_000, "{served}");
        connection.reached(Phase::Served);
        connection.received(1);
        connection.sent(1);
        assert_eq!(connection.phases().at(Phase::Served), Some(served));
        assert!(connection.phases().at(Phase::FirstByte).is_some_and(|first| first >= served));
        assert_eq!(connection.phases().at(Phase::Judged), None);
    }

    #[tokio::test]
    async fn the_first_cause_of_a_cut_stays() {
        let client = ClientAddr::new(([127, 0, 0, 1], 1).into());
        let connection = Connection::new(ConnectionId::random(), Direction::Inbound, client, None);
        connection.cut(CutCause { reason: Reason::PolicyChanged, policy: None });
        connection.cut(CutCause { reason: Reason::Draining, policy: None });
        assert_eq!(connection.was_cut().await.reason, Reason::PolicyChanged);
    }
}
