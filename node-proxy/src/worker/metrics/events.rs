//! What happens to connections whatever they are called: refusals and early ends by Reason, open connections and tunnels,
//! handshakes, the time to the first byte. Counted by each thread for itself.

use std::sync::Arc;
use std::time::Duration;

use mesh_model::Reason;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::family::{Spec, pair};
use super::threads::{Count, PerThread, counts};
use crate::worker::connection::Direction;

const REFUSED: Spec = Spec { name: "culvert_connections_refused_total", help: "Connections refused, by reason." };
const ENDED: Spec = Spec {
    name: "culvert_connections_ended_total",
    help: "Connections that were set up and ended by something else than their two ends' end of data, by reason.",
};
const OPEN: Spec =
    Spec { name: "culvert_connections_open", help: "Connections that are open or being set up, tunnels not counted." };
const TUNNELS: Spec =
    Spec { name: "culvert_tunnels_open", help: "Tunnels (TLS connections) that are open, by our side." };
const HANDSHAKES: Spec = Spec {
    name: "culvert_handshakes_total",
    help: "TLS and HTTP/2 set-ups of tunnels, by our side; result is ok or the reason of the failure.",
};
const QUEUE: Spec = Spec {
    name: "culvert_connection_first_byte_seconds",
    help: "From accept to the first byte passed either way, in seconds: waiting for a thread, policy, certificate, tunnel and far \
           end, and the application that speaks first.",
};

/// Upper bounds of the histogram's buckets, in seconds: a connection on one node takes about half a millisecond, a deadline 10 s.
const BOUNDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Which end of a tunnel this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It opened it.
    Client,
    /// It accepted it.
    Server,
}

impl Side {
    const ALL: [Side; 2] = [Side::Client, Side::Server];

    const fn as_str(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}

/// The numbers of one thread.
#[derive(Debug)]
struct Local {
    refused: [Box<[Count]>; 3],
    ended: [Box<[Count]>; 3],
    open: [Count; 3],
    tunnels: [Count; 2],
    // By reason, and one more for success.
    handshakes: [Box<[Count]>; 2],
    // By bucket, one more without bound, and the sum in microseconds.
    first_byte: [Box<[Count]>; 3],
}

/// See the module.
#[derive(Debug)]
pub struct Events(PerThread<Local>);

impl Events {
    /// All at zero, for this many threads.
    pub fn new(threads: usize) -> Self {
        let reasons = || [0; 3].map(|_| counts(Reason::ALL.len()));
        Self(PerThread::new(threads, || Local {
            refused: reasons(),
            ended: reasons(),
            open: Default::default(),
            tunnels: Default::default(),
            handshakes: [0; 2].map(|_| counts(Reason::ALL.len() + 1)),
            first_byte: [0; 3].map(|_| counts(BOUNDS.len() + 2)),
        }))
    }

    /// A connection was refused.
    pub fn refused(&self, direction: Direction, reason: Reason) {
        self.0.here().refused[direction as usize][reason as usize].add(1);
    }

    /// A connection was ended early.
    pub fn ended(&self, direction: Direction, reason: Reason) {
        self.0.here().ended[direction as usize][reason as usize].add(1);
    }

    /// A connection began; it must be followed by one [`Events::done`] on the same thread.
    pub fn begun(&self, direction: Direction) {
        self.0.here().open[direction as usize].add(1);
    }

    /// It has ended.
    pub fn done(&self, direction: Direction) {
        self.0.here().open[direction as usize].sub(1);
    }

    /// A tunnel was not set up.
    pub fn handshake_failed(&self, side: Side, reason: Reason) {
        self.0.here().handshakes[side as usize][reason as usize].add(1);
    }

    /// A tunnel was set up; it counts as open until the value is dropped, on the same thread.
    pub fn tunnel(self: &Arc<Self>, side: Side) -> OpenTunnel {
        let here = self.0.here();
        here.handshakes[side as usize][Reason::ALL.len()].add(1);
        here.tunnels[side as usize].add(1);
        OpenTunnel { events: self.clone(), side }
    }

    /// A connection has passed its first byte after this time.
    pub fn first_byte(&self, direction: Direction, after: Duration) {
        let buckets = &self.0.here().first_byte[direction as usize];
        let bucket = BOUNDS.iter().position(|bound| after.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        buckets[bucket].add(1);
        buckets[BOUNDS.len() + 1].add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
    }

    /// How many connections of this direction are open.
    pub fn open(&self, direction: Direction) -> u64 {
        self.0.sum(|local| &local.open[direction as usize])
    }

    /// How often a connection of this direction was refused for this reason.
    #[cfg(test)]
    pub fn refusals(&self, direction: Direction, reason: Reason) -> u64 {
        self.0.sum(|local| &local.refused[direction as usize][reason as usize])
    }
}

/// Counts a tunnel as open.
#[derive(Debug)]
pub struct OpenTunnel {
    events: Arc<Events>,
    side: Side,
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.events.0.here().tunnels[self.side as usize].sub(1);
    }
}

/// What is scraped of the events, the histogram only where connections are metered.
#[derive(Debug)]
pub struct Told {
    /// The events.
    pub events: Arc<Events>,
    /// Whether the first byte's time is told.
    pub first_byte: bool,
}

impl Collector for Told {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: std::sync::LazyLock<Vec<Desc>> =
            std::sync::LazyLock::new(|| [REFUSED, ENDED, OPEN, TUNNELS, HANDSHAKES, QUEUE].map(Spec::desc).into());
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = &self.events.0;
        let directions =
            || Direction::ALL.into_iter().map(|direction| (direction, pair("direction", direction.as_str())));
        let sides = || Side::ALL.into_iter().map(|side| (side, pair("side", side.as_str())));
        let by_reason = |of: fn(&Local) -> &[Box<[Count]>; 3]| {
            directions().flat_map(move |(direction, label)| {
                Reason::ALL.iter().map(move |reason| {
                    let count = all.sum(|local| &of(local)[direction as usize][*reason as usize]);
                    (vec![label.clone(), pair("reason", reason.as_str())], count as f64)
                })
            })
        };
        let handshakes = sides().flat_map(|(side, label)| {
            let results = Reason::ALL.iter().map(|reason| reason.as_str()).chain(["ok"]).enumerate();
            results.map(move |(index, result)| {
                let count = all.sum(|local| &local.handshakes[side as usize][index]);
                (vec![label.clone(), pair("result", result)], count as f64)
            })
        });
        let open = directions().map(|(direction, label)| (vec![label], self.events.open(direction) as f64));
        let tunnels = sides().map(|(side, label)| (vec![label], all.sum(|local| &local.tunnels[side as usize]) as f64));
        let mut families = vec![
            REFUSED.counters(by_reason(|local| &local.refused)),
            ENDED.counters(by_reason(|local| &local.ended)),
            OPEN.gauges(open),
            TUNNELS.gauges(tunnels),
            HANDSHAKES.counters(handshakes),
        ];
        if self.first_byte {
            let times = directions().map(|(direction, label)| {
                let sum = |index: usize| all.sum(|local| &local.first_byte[direction as usize][index]);
                let counts = (0..=BOUNDS.len()).map(sum).collect();
                (vec![label], counts, sum(BOUNDS.len() + 1) as f64 / 1e6)
            });
            families.push(QUEUE.histograms(&BOUNDS, times));
        }
        families
    }
}
