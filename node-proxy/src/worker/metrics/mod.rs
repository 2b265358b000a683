//! Every metric of the worker. Names and labels are Istio's where Istio has one, so that existing dashboards work; `docs/metrics.md`
//! lists them all, and a lab test (`metrics_page`) holds the two together.
//!
//! Label values come from closed enums or from objects the control plane named, never from bytes of a connection. What is counted per
//! connection is found once, when it is set up, and written by its own thread alone ([`threads`]).

mod events;
mod family;
mod flags;
mod labels;
mod meter;
mod plain;
mod series;
mod tap;
mod threads;
mod traffic;
mod work;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_model::{PodName, Reason};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

pub use events::{Events, Side};
pub use flags::Flags;
pub use labels::{End, Far, Reporter, Security};
pub use meter::{Meter, Scope};
pub use plain::Plain;
pub use tap::Tap;
pub use threads::enter;
pub use work::Work;

use meter::Meters;
use traffic::Traffic;

/// Label sets of traffic series per workload of this node, unless `--series-per-pod` says otherwise. A pod talks with a few dozen others
/// by name; a full node (250 pods) then holds 25,000 at the very most, some 20 MB of memory and as much in a scrape (estimated).
pub const SERIES_PER_POD: usize = 100;
/// How long a label set stays without a connection, unless `--series-idle-seconds` says otherwise. Three times Prometheus' staleness.
pub const SERIES_IDLE: Duration = Duration::from_secs(900);
/// How often series are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// What metrics depend on.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Threads that serve connections.
    pub threads: usize,
    /// Whether there are metrics per connection and pod at all.
    pub connections: bool,
    /// Label sets per workload.
    pub series_per_pod: usize,
    /// How long one stays without a connection.
    pub series_idle: Duration,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    config: MetricsConfig,
    events: Arc<Events>,
    traffic: Arc<Traffic>,
    meters: Arc<Meters>,
    scrapes: AtomicU64,
    /// Those that are no more than a number.
    pub plain: Plain,
}

impl Metrics {
    /// All at zero.
    pub fn new(config: MetricsConfig) -> Self {
        let registry = Registry::new();
        let events = Arc::new(Events::new(config.threads));
        let traffic = Arc::new(Traffic::new(config.threads, config.series_per_pod, config.series_idle));
        let meters = Arc::<Meters>::default();
        let plain = Plain::new(&registry);
        register(&registry, Box::new(events::Told { events: events.clone(), first_byte: config.connections }));
        if config.connections {
            register(&registry, Box::new(Told(traffic.clone())));
            register(&registry, Box::new(Told(meters.clone())));
        }
        Self { registry, config, events, traffic, meters, scrapes: AtomicU64::new(0), plain }
    }

    /// For the endpoint.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What happens to connections whatever they are called.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Whether connections are metered.
    pub fn of_connections(&self) -> bool {
        self.config.connections
    }

    /// The meter of a pod that came.
    pub fn pod(&self, slot: u32, name: &PodName) -> Arc<Meter> {
        let meter = Meter::new(slot, name.clone(), self.config.threads, self.config.connections);
        self.meters.add(&meter);
        meter
    }

    /// The meter of the pod with this slot.
    pub fn pod_at(&self, slot: u32) -> Option<Arc<Meter>> {
        self.meters.get(slot)
    }

    /// A pod is gone. Connections that outlive it are still counted.
    pub fn gone(&self, meter: &Meter) {
        meter.leave();
        self.traffic.leave(meter.slot());
    }

    /// A connection was set up: counts it, and says where its bytes are counted. `None` when connections are not metered.
    pub fn opened(&self, meter: &Arc<Meter>, own: End, far: Far, scope: Scope) -> Option<Tap> {
        let tap = self.tap(meter, own, far, scope)?;
        tap.cells.opened.add(1);
        Some(tap)
    }

    /// It has ended.
    pub fn closed(&self, tap: &Tap, reason: Option<Reason>) {
        match Flags::from(reason) {
            Flags::None => tap.cells.closed.add(1),
            flags => {
                let far = Far { flags, ..tap.far.clone() };
                self.cells(&tap.meter, &tap.own, far).closed.add(1);
            }
        }
    }

    /// A connection was refused.
    pub fn failed(&self, meter: &Arc<Meter>, own: &End, far: Far) {
        if self.config.connections {
            self.cells(meter, own, far).failed.add(1);
        }
    }

    fn tap(&self, meter: &Arc<Meter>, own: End, far: Far, scope: Scope) -> Option<Tap> {
        if !self.config.connections {
            return None;
        }
        let cells = self.cells(meter, &own, far.clone());
        Some(Tap { cells, meter: meter.clone(), scope, own, far })
    }

    fn cells(&self, meter: &Meter, own: &End, far: Far) -> Arc<series::Cells> {
        match meter.table(own, || self.traffic.join(meter.slot(), own)) {
            Some(table) => self.traffic.cells(&table, far),
            None => self.traffic.late(own, far),
        }
    }

    /// A scrape begins: whatever is read from now on, it will have seen.
    pub fn scraped(&self) {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        self.traffic.scraped();
    }

    /// Folds idle series and drops those of pods that are gone.
    pub fn sweep(&self, now: Instant) {
        self.traffic.sweep(now);
        self.meters.sweep(now, self.scrapes.load(Ordering::Relaxed), series::is_over);
    }

    /// [`Metrics::sweep`], for ever; dropped with the worker.
    pub async fn sweep_now_and_then(self: Arc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            self.sweep(Instant::now());
        }
    }

    /// As a test wants them.
    #[cfg(test)]
    pub fn for_test() -> Self {
        Self::new(Self::config_for_test())
    }

    /// See [`Metrics::for_test`].
    #[cfg(test)]
    pub fn config_for_test() -> MetricsConfig {
        MetricsConfig { threads: 1, connections: true, series_per_pod: SERIES_PER_POD, series_idle: SERIES_IDLE }
    }
}

/// A collector that others hold too.
struct Told<C>(Arc<C>);

impl<C: Collector> Collector for Told<C> {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}

fn register(registry: &Registry, collector: Box<dyn Collector>) {
    registry.register(collector).expect("each name is registered once, here and in `plain`");
}
