//! Packets that pass a captured pod uncaptured, as its own rules count them: UDP, everything that is neither UDP nor TCP, and TCP that the
//! pod forwards for others (containers inside it, a VPN).
//!
//! One set of six series a pod that the node has, taken away with the pod. The rules start at zero when they are written anew; the
//! series do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_model::{PodName, PodUid};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Rule, direction, protocol.
const RULES: [(&str, &str, &str); 7] = [
    ("input-udp", "in", "udp"),
    ("input-other", "in", "other"),
    ("output-udp", "out", "udp"),
    ("output-other", "out", "other"),
    ("input-forwarded", "in", "tcp"),
    ("leave-forwarded", "out", "tcp"),
    ("leave-bridged", "out", "tcp"),
];

/// What the rules of one pod counted when they were last read, and its series.
#[derive(Debug)]
struct Pod {
    name: PodName,
    of: [(u64, IntCounter); RULES.len()],
}

/// The series of all pods. Clones are the same.
#[derive(Clone, Debug)]
pub struct Passed {
    packets: IntCounterVec,
    pods: Arc<Mutex<BTreeMap<PodUid, Pod>>>,
}

impl Passed {
    /// No pod yet.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let opts = Opts::new(
            "culvert_watcher_passed_packets_total",
            "Packets that pass a captured pod uncaptured, by pod, direction and protocol; of TCP those that it forwards for others.",
        );
        let packets = IntCounterVec::new(opts, &["namespace", "pod", "direction", "protocol"])?;
        registry.register(Box::new(packets.clone()))?;
        Ok(Self { packets, pods: Arc::default() })
    }

    /// The rules of a pod were read: packets by rule.
    pub fn read(&self, uid: &PodUid, name: &PodName, counts: &BTreeMap<String, (u64, u64)>) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.entry(uid.clone()).or_insert_with(|| Pod {
            name: name.clone(),
            of: RULES.map(|(_, direction, protocol)| {
                (0, self.packets.with_label_values(&[&name.namespace, &name.name, direction, protocol]))
            }),
        });
        for ((rule, ..), (last, counter)) in RULES.iter().zip(&mut pod.of) {
            // A table that is not there has counted nothing, and one written anew starts over.
            let now = counts.get(*rule).map_or(0, |(packets, _)| *packets);
            counter.inc_by(now.checked_sub(*last).unwrap_or(now));
            *last = now;
        }
    }

    /// The pod is gone, and its series with it; unless another pod has taken its name meanwhile.
    pub fn gone(&self, uid: &PodUid) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Pod { name, .. }) = pods.remove(uid) else { return };
        if pods.values().any(|other| other.name == name) {
            return;
        }
        for (_, direction, protocol) in RULES {
            // Not there: it was never made.
            let _ = self.packets.remove_label_values(&[&name.namespace, &name.name, direction, protocol]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(registry: &Registry) -> (usize, f64) {
        let families = registry.gather();
        let series: Vec<f64> = families
            .iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| metric.get_counter().get_value())
            .collect();
        (series.len(), series.iter().sum())
    }

    fn counts(udp: u64) -> BTreeMap<String, (u64, u64)> {
        [("input-udp".to_owned(), (udp, 100 * udp)), ("capture-in".to_owned(), (7, 7))].into()
    }

    #[test]
    fn packets_are_counted_once_also_when_rules_are_written_anew_and_a_gone_pod_s_series_go() {
        let registry = Registry::new();
        let passed = Passed::new(&registry).expect("a name");
        let pod = |n: u32| {
            (PodUid::parse(&format!("u{n}")).expect("a uid"), PodName { namespace: "shop".into(), name: "a".into() })
        };
        let (uid, name) = pod(1);
        passed.read(&uid, &name, &counts(10));
        passed.read(&uid, &name, &counts(12));
        passed.read(&uid, &name, &counts(3));
        assert_eq!(sum(&registry), (6, 15.0));
        // Another pod of the same name comes before the first is let go.
        let (other, name) = pod(2);
        passed.read(&other, &name, &counts(1));
        passed.gone(&uid);
        assert_eq!(sum(&registry), (6, 16.0));
        passed.gone(&other);
        assert_eq!(sum(&registry), (0, 0.0));
    }
}
