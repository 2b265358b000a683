//! The services that a workload stands behind: what slices say is gathered here, and becomes what proxies are told.

use std::collections::BTreeMap;

use mesh_model::{Endpoint, Health, Hints, Readiness, ServiceKey, Workload};

/// Ports of a service at one endpoint: (service port, port at the endpoint).
pub(super) type Ports = Vec<(u16, u16)>;

/// The services that a workload stands behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Behind(BTreeMap<ServiceKey, Stand>);

/// How it stands behind one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) ports: Ports,
    pub(super) state: State,
    pub(super) hints: Hints,
    /// Whether the service wants those that are not ready as well.
    pub(super) unready_too: bool,
}

/// What its slices say; of several the best is true, which comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Nobody is led there, but whoever reaches it is judged by the same policies.
    Unready,
    /// It comes to its end and still serves.
    Ending,
    Ready,
}

impl Behind {
    /// It stands behind a service, or at more ports of it.
    pub(super) fn add(&mut self, service: &ServiceKey, stand: &Stand) {
        let Some(known) = self.0.get_mut(service) else {
            self.0.insert(service.clone(), stand.clone());
            return;
        };
        let Stand { ports, state, hints: Hints { zones, nodes }, unready_too } = stand;
        extend(&mut known.ports, ports);
        extend(&mut known.hints.zones, zones);
        extend(&mut known.hints.nodes, nodes);
        known.state = known.state.max(*state);
        known.unready_too |= unready_too;
    }

    /// The same for all of them.
    pub(super) fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(service, stand)| self.add(service, stand));
    }

    /// Whether it is one of a service's endpoints, ready or not.
    pub(super) fn contains(&self, service: &ServiceKey) -> bool {
        self.0.contains_key(service)
    }

    /// Tells a workload all of it. A pod's own health is what the pod says; that of anything else is what its slices say.
    pub(super) fn settle(&self, workload: &mut Workload) {
        if !workload.uid.is_pod() {
            let ready = self.0.values().any(|stand| stand.state == State::Ready);
            workload.health = if ready { Health::Healthy } else { Health::Unhealthy };
        }
        let told = self.0.iter().filter_map(|(service, stand)| Some((service.clone(), stand.told(workload.health)?)));
        workload.services = told.collect();
    }
}

impl Stand {
    /// What proxies are told: no more than is needed beside the workload's health, and nothing of an endpoint that nobody may use and that
    /// the health alone would lead to.
    fn told(&self, health: Health) -> Option<Endpoint> {
        let used_by_health = health == Health::Healthy || self.unready_too;
        let readiness = match (self.state, used_by_health) {
            (State::Ready, true) | (State::Unready, false) => Readiness::Unsaid,
            (State::Ready, false) => Readiness::Ready,
            (State::Ending, _) => Readiness::Ending,
            (State::Unready, true) => return None,
        };
        Some(Endpoint { ports: self.ports.clone(), readiness, hints: self.hints.clone() })
    }
}

fn extend<T: Clone + PartialEq>(known: &mut Vec<T>, more: &[T]) {
    for one in more {
        if !known.contains(one) {
            known.push(one.clone());
        }
    }
}
