//! Random operations against a plain count: whatever is folded, swept or shared, no sum over a workload goes down or is wrong.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::worker::metrics::threads;

const OWNERS: [&str; 3] = ["web", "web", "cart"];
const THREADS: usize = 2;
const BUDGET: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Open { pod: usize, far: u8, destination: bool, thread: usize },
    Bytes { connection: usize, up: u16, down: u16 },
    Close { connection: usize, reset: bool },
    Refuse { pod: usize, far: u8, thread: usize },
    Pass { seconds: u16 },
    Scrape,
    Gone { pod: usize },
    Back { pod: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, 0..8u8, any::<bool>(), 0..THREADS)
            .prop_map(|(pod, far, destination, thread)| Step::Open { pod, far, destination, thread }),
        4 => (0..16usize, any::<u16>(), any::<u16>()).prop_map(|(connection, up, down)| Step::Bytes { connection, up, down }),
        3 => (0..16usize, any::<bool>()).prop_map(|(connection, reset)| Step::Close { connection, reset }),
        2 => (0..3usize, 0..8u8, 0..THREADS).prop_map(|(pod, far, thread)| Step::Refuse { pod, far, thread }),
        3 => (0..400u16).prop_map(|seconds| Step::Pass { seconds }),
        2 => Just(Step::Scrape),
        1 => (0..3usize).prop_map(|pod| Step::Gone { pod }),
        1 => (0..3usize).prop_map(|pod| Step::Back { pod }),
    ]
}

const NAMES: [&str; 5] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_connections_failed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
];

struct Machine {
    metrics: Metrics,
    meters: [Option<Arc<Meter>>; 3],
    // A pod that is gone has left this for its connections.
    last: [Arc<Meter>; 3],
    // Pods that have counted something: only those keep a table.
    counts: [bool; 3],
    open: Vec<(Tap, usize, &'static str)>,
    now: Instant,
    slot: u32,
    // The plain count, by owner.
    counted: HashMap<&'static str, [u64; 5]>,
    before: BTreeMap<String, f64>,
}

impl Machine {
    fn new() -> Self {
        let metrics = Metrics::new(MetricsConfig {
            threads: THREADS,
            connections: true,
            series_per_pod: BUDGET,
            series_idle: Duration::from_secs(300),
        });
        let last = [0, 1, 2].map(|index| pod(&metrics, index, &format!("{}-{index}", OWNERS[index as usize])));
        let (meters, counted) = (last.clone().map(Some), HashMap::new());
        Self {
            metrics,
            meters,
            last,
            counts: [false; 3],
            open: Vec::new(),
            now: Instant::now(),
            slot: 3,
            counted,
            before: BTreeMap::new(),
        }
    }

    fn far(far_name: u8, destination: bool) -> Far {
        let reporter = if destination { Reporter::Destination } else { Reporter::Source };
        Far { reporter, ..far(&format!("far-{far_name}")) }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Open { pod, far, destination, thread } => {
                threads::enter(thread);
                let owner = OWNERS[pod];
                self.counts[pod] = self.meters[pod].is_some();
                // Also for a pod that is gone: a request of a tunnel that outlives it.
                let tap =
                    self.metrics.opened(&self.last[pod], end(owner), Self::far(far, destination), Scope::SameNode);
                self.open.push((tap.expect("on"), thread, owner));
                self.counted.entry(owner).or_default()[0] += 1;
            }
            Step::Bytes { connection, up, down } if connection < self.open.len() => {
                let (tap, thread, owner) = &self.open[connection];
                threads::enter(*thread);
                tap.to_destination(up.into());
                tap.to_client(down.into());
                let counted = self.counted.entry(owner).or_default();
                counted[4] += u64::from(up);
                counted[3] += u64::from(down);
            }
            Step::Close { connection, reset } if connection < self.open.len() => {
                let (tap, thread, owner) = self.open.swap_remove(connection);
                threads::enter(thread);
                self.metrics.closed(&tap, reset.then_some(Reason::Reset));
                self.counted.entry(owner).or_default()[1] += 1;
            }
            Step::Refuse { pod, far, thread } => {
                threads::enter(thread);
                self.counts[pod] = self.meters[pod].is_some();
                let far = Far { flags: Flags::Deny, ..Self::far(far, false) };
                self.metrics.failed(&self.last[pod], &end(OWNERS[pod]), far);
                self.counted.entry(OWNERS[pod]).or_default()[2] += 1;
            }
            Step::Bytes { .. } | Step::Close { .. } => {}
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(seconds.into());
                self.metrics.sweep(self.now);
            }
            Step::Scrape => self.metrics.scraped(),
            Step::Gone { pod } => {
                if let Some(meter) = self.meters[pod].take() {
                    self.metrics.gone(&meter);
                    self.counts[pod] = false;
                }
            }
            Step::Back { pod: index } => {
                if self.meters[index].is_none() {
                    self.slot += 1;
                    let meter = pod(&self.metrics, self.slot, &format!("{}-{}", OWNERS[index], self.slot));
                    self.last[index] = meter.clone();
                    self.meters[index] = Some(meter);
                }
            }
        }
    }

    fn check(&mut self) {
        let all = scraped(&self.metrics);
        for owner in ["web", "cart"] {
            let sides = [format!("source_workload={owner:?}"), format!("destination_workload={owner:?}")];
            let own = |key: &String| {
                (key.contains("reporter=\"source\"") && key.contains(&sides[0]))
                    || (key.contains("reporter=\"destination\"") && key.contains(&sides[1]))
            };
            let total = |name: &str| -> u64 {
                all.iter().filter(|(key, _)| key.starts_with(name) && own(key)).map(|(_, value)| *value as u64).sum()
            };
            let told = NAMES.map(total);
            let counted = self.counted.entry(owner).or_default();
            if all.keys().any(own) {
                assert_eq!(told, *counted, "{owner}: {NAMES:?}");
            } else {
                // A table leaves whole, and only when nobody of the workload is there to count any more.
                let there = OWNERS.iter().zip(self.counts).any(|(name, counts)| *name == owner && counts);
                let open = self.open.iter().any(|(_, _, name)| *name == owner);
                assert!(*counted == [0; 5] || !(there || open), "{owner}: {counted:?} is lost");
                *counted = [0; 5];
            }
        }
        // One series alone goes down only by leaving.
        for (key, value) in &self.before {
            let now = all.get(key);
            if key.starts_with("istio_tcp") || key.starts_with("culvert_series_folded") {
                assert!(now.is_none_or(|now| now >= value), "{key} went from {value} to {now:?}");
            }
        }
        let sets = all["culvert_series_label_sets{}"];
        assert!(sets <= (2 * BUDGET) as f64, "{sets} label sets of two workloads");
        self.before = all;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn sums_over_a_workload_equal_a_plain_count_and_never_go_down(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::new();
        for step in &steps {
            machine.run(step);
            machine.check();
        }
        threads::enter(usize::MAX);
    }
}
