//! The mesh as one proxy knows it: workloads, services and policies with the indexes that a connection needs.
//!
//! A `Mesh` is an immutable snapshot for readers: the writer clones the (cheap, `Arc`-shared) maps, applies a batch of changes
//! and publishes the result. `apply`/`remove` answer whether anything changed, so that readers wake only for real news.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::{Policy, PolicyKey};
use crate::{PodName, Service, ServiceKey, Workload, WorkloadUid};

/// All records. Cloning shares the records.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: std::collections::HashMap<WorkloadUid, Arc<Workload>>,
}

impl Mesh {
    /// Adds or replaces a workload; whether anything changed.
    pub fn apply_workload(&mut self, workload: Workload) -> bool {
        let _ = (&self.workloads, workload);
        false
    }
    /// Removes a workload; whether it was there.
    pub fn remove_workload(&mut self, _uid: &WorkloadUid) -> bool {
        false
    }
    /// Adds or replaces a service; whether anything changed.
    pub fn apply_service(&mut self, _service: Service) -> bool {
        false
    }
    /// Removes a service; whether it was there.
    pub fn remove_service(&mut self, _key: &ServiceKey) -> bool {
        false
    }
    /// Adds or replaces a policy; whether anything changed.
    pub fn apply_policy(&mut self, _policy: Policy) -> bool {
        false
    }
    /// Removes a policy; whether it was there.
    pub fn remove_policy(&mut self, _key: &PolicyKey) -> bool {
        false
    }

    /// A workload by key.
    pub fn workload(&self, _uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        None
    }
    /// The pod workload of this name, for the node's own pods.
    pub fn workload_of_pod(&self, _pod: &PodName) -> Option<&Arc<Workload>> {
        None
    }
    /// The workload that has this address (host-network workloads are never found so).
    pub fn workload_at(&self, _ip: IpAddr) -> Option<&Arc<Workload>> {
        None
    }
    /// The service that has this virtual address.
    pub fn service_at(&self, _vip: IpAddr) -> Option<&Arc<Service>> {
        None
    }
    /// A service by key.
    pub fn service(&self, _key: &ServiceKey) -> Option<&Arc<Service>> {
        None
    }
    /// The workloads behind a service, in key order.
    pub fn endpoints(&self, _service: &ServiceKey) -> Vec<Arc<Workload>> {
        Vec::new()
    }
    /// A policy by key.
    pub fn policy(&self, _key: &PolicyKey) -> Option<&Arc<Policy>> {
        None
    }
    /// Every policy that applies to the workload (global, its namespace, those it lists) in key order, or the first listed key
    /// that has not arrived.
    pub fn policies_for(&self, _workload: &Workload) -> Result<Vec<Arc<Policy>>, PolicyKey> {
        Ok(Vec::new())
    }
    /// All workloads, services and policies: for dumps.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }
    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        [].iter()
    }
    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        [].iter()
    }
    /// The keys of all policies: for dumps.
    pub fn policy_keys(&self) -> BTreeSet<PolicyKey> {
        BTreeSet::new()
    }
}
