//! The mesh as one proxy knows it: workloads, services and policies with the indexes that a connection needs.
//!
//! A `Mesh` is an immutable snapshot for readers: the writer clones the (cheap, `Arc`-shared) maps, applies a batch of changes
//! and publishes the result. `apply`/`remove` answer whether anything changed, so that readers wake only for real news.
//! Records may arrive in any order: a workload before its services, a policy after the workloads that list it.

mod group;
mod shards;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::{Policy, PolicyKey, Scope};
use crate::{PodName, Service, ServiceKey, TrustDomains, Workload, WorkloadUid};
use group::Group;
use shards::Shards;

/// All records. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: Shards<WorkloadUid, Arc<Workload>>,
    services: Shards<ServiceKey, Arc<Service>>,
    policies: Shards<PolicyKey, Arc<Policy>>,
    trust_domains: Option<Arc<TrustDomains>>,
    outdated: bool,

    // Derived. Groups hold every record that claims the key, the one that wins first.
    by_pod: Shards<PodName, Group<Workload>>,
    by_address: Shards<IpAddr, Group<Workload>>,
    by_service: Shards<ServiceKey, Group<Workload>>,
    by_vip: Shards<IpAddr, Group<Service>>,
    of_namespace: Shards<String, Group<Policy>>,
    global: Group<Policy>,
}

impl Mesh {
    /// Adds or replaces a workload; whether anything changed.
    pub fn apply_workload(&mut self, workload: Workload) -> bool {
        if self.workloads.get(&workload.uid).is_some_and(|known| **known == workload) {
            return false;
        }
        let workload = Arc::new(workload);
        if let Some(old) = self.workloads.insert(workload.uid.clone(), workload.clone()) {
            self.unindex_workload(&old);
        }
        self.index_workload(&workload);
        true
    }

    /// Removes a workload; whether it was there.
    pub fn remove_workload(&mut self, uid: &WorkloadUid) -> bool {
        let Some(old) = self.workloads.remove(uid) else { return false };
        self.unindex_workload(&old);
        true
    }

    /// Adds or replaces a service; whether anything changed.
    pub fn apply_service(&mut self, service: Service) -> bool {
        if self.services.get(&service.key).is_some_and(|known| **known == service) {
            return false;
        }
        let service = Arc::new(service);
        if let Some(old) = self.services.insert(service.key.clone(), service.clone()) {
            self.unindex_service(&old);
        }
        for vip in distinct(&service.vips) {
            self.by_vip.change(vip, |group| group.add(&service), |_| true);
        }
        true
    }

    /// Removes a service; whether it was there. Its endpoints stay known as such, should it come back.
    pub fn remove_service(&mut self, key: &ServiceKey) -> bool {
        let Some(old) = self.services.remove(key) else { return false };
        self.unindex_service(&old);
        true
    }

    /// Adds or replaces a policy; whether anything changed.
    pub fn apply_policy(&mut self, policy: Policy) -> bool {
        if self.policies.get(&policy.key).is_some_and(|known| **known == policy) {
            return false;
        }
        let policy = Arc::new(policy);
        if let Some(old) = self.policies.insert(policy.key.clone(), policy.clone()) {
            self.unindex_policy(&old);
        }
        match policy.scope {
            Scope::Global => self.global.add(&policy),
            Scope::Namespace => {
                self.of_namespace.change(policy.key.namespace.clone(), |group| group.add(&policy), |_| true);
            }
            Scope::Selector => {}
        }
        true
    }

    /// Removes a policy; whether it was there.
    pub fn remove_policy(&mut self, key: &PolicyKey) -> bool {
        let Some(old) = self.policies.remove(key) else { return false };
        self.unindex_policy(&old);
        true
    }

    /// Sets the trust domains that mean this mesh: a policy that names a principal of one of them means it in all of them. Whether
    /// anything changed. Without it, principals are compared as they are written.
    pub fn set_trust_domains(&mut self, domains: TrustDomains) -> bool {
        let changed = self.trust_domains.as_deref() != Some(&domains);
        self.trust_domains = Some(Arc::new(domains));
        changed
    }

    /// Says that all of this is of the past and too old to let anybody in: every judgement refuses until it is said otherwise. What is
    /// known of where things are stays in use.
    pub fn set_outdated(&mut self, outdated: bool) {
        self.outdated = outdated;
    }

    /// See [`Mesh::set_outdated`].
    pub fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// The trust domains that mean this mesh, where set.
    pub fn trust_domains(&self) -> Option<&TrustDomains> {
        self.trust_domains.as_deref()
    }

    /// A workload by key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload of this pod name, for the node's own pods; one that is a pod before others that carry its name.
    pub fn workload_of_pod(&self, pod: &PodName) -> Option<&Arc<Workload>> {
        self.by_pod.get(pod)?.first()
    }

    /// The workload that has this address (host-network workloads are never found so). Where several claim it, for a moment while
    /// an address is reused or by mistake: the first in [`Workload::claim_order`].
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&ip.to_canonical())?.first()
    }

    /// The service that has this virtual address; of several, the one with the smallest key.
    pub fn service_at(&self, vip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&vip.to_canonical())?.first()
    }

    /// A service by key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The workloads behind a service, in key order, whatever their health and whether or not the service itself is known.
    pub fn endpoints(&self, service: &ServiceKey) -> Vec<Arc<Workload>> {
        let mut all: Vec<_> =
            self.by_service.get(service).map(|group| group.iter().cloned().collect()).unwrap_or_default();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    /// A policy by key.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Every policy that applies to the workload (global, its namespace, those it lists) in key order, or the first listed key
    /// that has not arrived.
    pub fn policies_for(&self, workload: &Workload) -> Result<Vec<Arc<Policy>>, PolicyKey> {
        let namespace = self.of_namespace.get(&workload.pod.namespace);
        let mut all: Vec<Arc<Policy>> =
            self.global.iter().chain(namespace.into_iter().flat_map(Group::iter)).cloned().collect();
        for key in &workload.policies {
            all.push(self.policies.get(key).ok_or_else(|| key.clone())?.clone());
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        // One may both be listed and apply by its scope.
        all.dedup_by(|a, b| a.key == b.key);
        Ok(all)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The keys of all policies: for dumps.
    pub fn policy_keys(&self) -> BTreeSet<PolicyKey> {
        self.policies.iter().map(|(key, _)| key.clone()).collect()
    }

    /// How many workloads, services and policies there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.services.len(), self.policies.len())
    }

    fn index_workload(&mut self, workload: &Arc<Workload>) {
        self.by_pod.change(workload.pod.clone(), |group| group.add(workload), |_| true);
        // The address of a host-network pod is the node's: whoever answers there need not be this pod.
        if !workload.host_network {
            for ip in distinct(&workload.addresses) {
                self.by_address.change(ip, |group| group.add(workload), |_| true);
            }
        }
        for key in workload.services.keys() {
            self.by_service.change(key.clone(), |group| group.add(workload), |_| true);
        }
    }

    fn unindex_workload(&mut self, old: &Workload) {
        self.by_pod.change(old.pod.clone(), |group| group.take(old), |group| !group.is_empty());
        if !old.host_network {
            for ip in distinct(&old.addresses) {
                self.by_address.change(ip, |group| group.take(old), |group| !group.is_empty());
            }
        }
        for key in old.services.keys() {
            self.by_service.change(key.clone(), |group| group.take(old), |group| !group.is_empty());
        }
    }

    fn unindex_service(&mut self, old: &Service) {
        for vip in distinct(&old.vips) {
            self.by_vip.change(vip, |group| group.take(old), |group| !group.is_empty());
        }
    }

    fn unindex_policy(&mut self, old: &Policy) {
        match old.scope {
            Scope::Global => self.global.take(old),
            Scope::Namespace => {
                self.of_namespace.change(old.key.namespace.clone(), |group| group.take(old), |group| !group.is_empty())
            }
            Scope::Selector => {}
        }
    }
}

/// Addresses in canonical form, each once: a record that names one twice is indexed once.
fn distinct(addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

#[cfg(test)]
mod tests;
