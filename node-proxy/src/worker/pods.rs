//! The pods this worker serves, known from the keeper alone: local facts come first and wait for nobody.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mesh_api::link::{NodeFacts, PodFacts};
use mesh_daemon::drain;
use mesh_model::{BadIdentity, Identity, Mesh, NetworkPolicy, PodName, PodUid, Reason, TrustDomain, Workload};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::live::Live;
use super::metrics::Meter;
use super::sessions::Sessions;

/// A pod's facts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadPod {
    /// Its uid.
    #[error("facts of a pod: {0}")]
    Uid(#[from] mesh_model::pod::BadPodUid),
    /// Its namespace or service account.
    #[error("facts of a pod: {0}")]
    Identity(#[from] BadIdentity),
}

impl BadPod {
    /// The reason for the keeper.
    pub fn reason(&self) -> Reason {
        Reason::Malformed
    }
}

/// What may change while a pod is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Ports of kubelet probes and hooks.
    pub probe_ports: Vec<u16>,
    /// What its sockets carry.
    pub mark: u32,
}

impl Facts {
    fn of(facts: &PodFacts) -> Self {
        let addresses = facts.addresses.iter().map(IpAddr::to_canonical).collect();
        Self { addresses, probe_ports: facts.probe_ports.clone(), mark: facts.mark }
    }
}

/// One pod of this node.
#[derive(Debug)]
pub struct Pod {
    slot: u32,
    uid: PodUid,
    name: PodName,
    identity: Identity,
    facts: ArcSwap<Facts>,
    budget: Arc<Semaphore>,
    live: Live,
    sessions: Sessions,
    meter: Arc<Meter>,
    // Asked when the pod is taken away, or the worker: its accept loops end and its tunnels send GOAWAY.
    drain: (drain::Trigger, drain::Watch),
    // Asked when the pod itself is taken away.
    gone: (drain::Trigger, drain::Watch),
}

impl Pod {
    /// From the keeper's facts. `budget`: how many connections it may have open. `meter` makes the meter of a pod of this name.
    pub fn new(
        slot: u32,
        facts: &PodFacts,
        domain: &TrustDomain,
        budget: usize,
        meter: impl FnOnce(&PodName) -> Arc<Meter>,
    ) -> Result<Self, BadPod> {
        let uid = PodUid::parse(&facts.uid)?;
        let identity = Identity::new(domain.clone(), &facts.namespace, &facts.service_account)?;
        let name = PodName { namespace: facts.namespace.clone(), name: facts.name.clone() };
        Ok(Self {
            slot,
            uid,
            meter: meter(&name),
            name,
            identity,
            facts: ArcSwap::from_pointee(Facts::of(facts)),
            budget: Arc::new(Semaphore::new(budget)),
            live: Live::default(),
            sessions: Sessions::default(),
            drain: drain::pair(),
            gone: drain::pair(),
        })
    }

    /// The keeper's number.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Kubernetes uid.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }

    /// Namespace and name.
    pub fn name(&self) -> &PodName {
        &self.name
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What may change.
    pub fn facts(&self) -> Arc<Facts> {
        self.facts.load_full()
    }

    /// Whether this is one of its addresses.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.facts.load().addresses.contains(&ip.to_canonical())
    }

    /// Its open connections.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Which endpoints it stays with.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// What it costs and moves.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Room for one more connection; `None` when its budget is used up.
    pub fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.budget.clone().try_acquire_owned().ok()
    }

    /// Its record in the mesh. A record of another pod of the same name (a StatefulSet's predecessor) is not this pod's.
    pub fn workload<'m>(&self, mesh: &'m Mesh) -> Option<&'m Arc<Workload>> {
        mesh.workload_of_pod(&self.name).filter(|workload| workload.pod_uid.as_ref().is_none_or(|uid| *uid == self.uid))
    }

    /// Whether it is known that no NetworkPolicy selects it.
    pub fn is_unselected(&self, mesh: &Mesh) -> bool {
        self.workload(mesh).is_some_and(|workload| workload.network_policy == NetworkPolicy::Unselected)
    }

    /// Learns when the pod leaves.
    pub fn leaving(&self) -> &drain::Watch {
        &self.drain.1
    }

    /// Resolves when the pod is taken away, which a worker that stops outlives.
    pub async fn gone(&self) {
        self.gone.1.asked().await;
    }

    /// The pod is taken away.
    pub fn go(&self) {
        self.leave();
        self.gone.0.ask();
    }

    /// Ends its accept loops and lets its tunnels come to an end.
    pub fn leave(&self) {
        self.drain.0.ask();
    }
}

/// All pods and the node, as one immutable value.
#[derive(Clone, Debug, Default)]
pub struct Table {
    by_slot: HashMap<u32, Arc<Pod>>,
    by_address: HashMap<IpAddr, Arc<Pod>>,
    node_addresses: HashSet<IpAddr>,
    complete: bool,
}

impl Table {
    /// The served pod that has this address.
    pub fn at(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&ip.to_canonical())
    }

    /// The pod with this slot.
    pub fn slot(&self, slot: u32) -> Option<&Arc<Pod>> {
        self.by_slot.get(&slot)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_slot.values()
    }

    /// Whether this is an address of the node itself.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.node_addresses.contains(&ip.to_canonical())
    }

    /// Whether the keeper has named all pods: before, a pod of this node may be one that is about to be named.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    fn index(&mut self) {
        self.by_address.clear();
        for pod in self.by_slot.values() {
            for address in &pod.facts().addresses {
                // Of two pods with one address (the older one is on its way out) the newer one has it.
                let holder = self.by_address.entry(*address).or_insert_with(|| pod.clone());
                if holder.slot < pod.slot {
                    *holder = pod.clone();
                }
            }
        }
    }
}

/// The table as it is now, and as it changes. Written by the link's task alone.
#[derive(Debug)]
pub struct Pods {
    table: watch::Sender<Arc<Table>>,
    // Writers clone, change and publish; this keeps two of them from losing each other's change.
    writing: Mutex<()>,
}

impl Default for Pods {
    fn default() -> Self {
        Self { table: watch::Sender::new(Arc::default()), writing: Mutex::default() }
    }
}

impl Pods {
    /// The table now.
    pub fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }

    /// Follows the table.
    pub fn follow(&self) -> watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table());
        change(&mut table);
        table.index();
        self.table.send_replace(Arc::new(table));
    }

    /// Takes the node's facts.
    pub fn node(&self, facts: &NodeFacts) {
        let addresses = facts.addresses.iter().map(IpAddr::to_canonical).collect();
        self.change(|table| table.node_addresses = addresses);
    }

    /// The keeper has named all pods.
    pub fn complete(&self) {
        self.change(|table| table.complete = true);
    }

    /// Adds a pod.
    pub fn add(&self, pod: Arc<Pod>) {
        self.change(|table| {
            table.by_slot.insert(pod.slot, pod);
        });
    }

    /// New facts of a pod; `false` when it is not served.
    pub fn update(&self, slot: u32, facts: &PodFacts) -> bool {
        let Some(pod) = self.table().slot(slot).cloned() else { return false };
        self.change(|_| pod.facts.store(Arc::new(Facts::of(facts))));
        true
    }

    /// Takes a pod out. It is not told: see [`Pod::leave`].
    pub fn remove(&self, slot: u32) -> Option<Arc<Pod>> {
        let pod = self.table().slot(slot).cloned();
        self.change(|table| {
            table.by_slot.remove(&slot);
        });
        pod
    }
}

#[cfg(test)]
pub mod testing {
    //! Pods for tests.

    use super::*;

    /// Facts of a pod `namespace/name` with one address and the service account `sa-<name>`.
    pub fn facts(namespace: &str, name: &str, address: &str) -> PodFacts {
        PodFacts {
            uid: format!("uid-{name}"),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: format!("sa-{name}"),
            addresses: vec![address.parse().expect("address")],
            mark: 0x1234,
            probe_ports: vec![8080],
        }
    }

    /// The pod of these facts.
    pub fn pod(slot: u32, facts: &PodFacts) -> Arc<Pod> {
        let domain = TrustDomain::parse("cluster.local").expect("trust domain");
        let meter = |name: &PodName| Meter::new(slot, name.clone(), 1, true);
        Arc::new(Pod::new(slot, facts, &domain, 100, meter).expect("pod"))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn a_pod_is_found_by_its_addresses_also_in_mapped_form() {
        let pods = Pods::default();
        pods.add(pod(1, &facts("shop", "web", "198.18.1.5")));
        let table = pods.table();
        assert_eq!(table.at(ip("::ffff:198.18.1.5")).map(|pod| pod.slot()), Some(1));
        assert!(table.at(ip("198.18.1.6")).is_none());
    }

    #[test]
    fn an_update_moves_the_address_and_a_removal_frees_it() {
        let pods = Pods::default();
        pods.add(pod(1, &facts("shop", "web", "198.18.1.5")));
        assert!(pods.update(1, &facts("shop", "web", "198.18.1.9")));
        assert!(pods.table().at(ip("198.18.1.5")).is_none());
        assert!(pods.table().at(ip("198.18.1.9")).is_some());
        assert!(pods.remove(1).is_some());
        assert!(pods.table().at(ip("198.18.1.9")).is_none());
        assert!(!pods.update(1, &facts("shop", "web", "198.18.1.9")));
    }

    #[test]
    fn of_two_pods_with_one_address_the_newer_has_it() {
        let pods = Pods::default();
        pods.add(pod(7, &facts("shop", "new", "198.18.1.5")));
        pods.add(pod(3, &facts("shop", "old", "198.18.1.5")));
        assert_eq!(pods.table().at(ip("198.18.1.5")).map(|pod| pod.slot()), Some(7));
    }

    #[test]
    fn facts_that_make_no_identity_are_refused() {
        let domain = TrustDomain::parse("cluster.local").expect("trust domain");
        let new = |facts: &PodFacts| Pod::new(1, facts, &domain, 1, |name| Meter::new(1, name.clone(), 1, true));
        let mut bad = facts("shop", "web", "198.18.1.5");
        bad.service_account = String::new();
        assert!(matches!(new(&bad), Err(BadPod::Identity(_))));
        bad.uid = "../../etc".into();
        assert!(matches!(new(&bad), Err(BadPod::Uid(_))));
    }
}
