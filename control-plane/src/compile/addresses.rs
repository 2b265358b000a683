//! Which pods and Services have which addresses, in all namespaces: a slice may name a pod of another one by its address alone, two pods
//! may claim the same, and a Service may name any as external.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::manifests::{Key, Kind, ObjectRef};
use mesh_model::Workload;

use super::Problem;
use super::workloads::Pods;

/// What a namespace looks for outside of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Pod(Key),
    Address(IpAddr),
}

/// The claims of all pods. A host-network pod has its node's address, which it shares with others rightly: it claims none.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Who has an address comes first among those who claim it.
    by_address: HashMap<IpAddr, Vec<Arc<Claimant>>>,
    by_namespace: BTreeMap<String, Vec<Claim>>,
    /// Who has a cluster IP; two where one was just deleted and the other has it already.
    cluster_ips: BTreeMap<IpAddr, BTreeSet<Key>>,
    services: BTreeMap<String, Vec<(Key, IpAddr)>>,
}

/// A pod and what it claims.
type Claim = (Arc<Claimant>, Vec<IpAddr>);

/// What of a pod decides whether an address is its own.
#[derive(Debug)]
struct Claimant {
    rank: mesh_model::ClaimRank,
    key: Key,
}

impl Addresses {
    /// Puts the pods of a namespace in place of those that were known of it. `moved` is added to by whatever others may have looked for,
    /// `near` by the namespaces that claim an address of these.
    pub(super) fn replace(
        &mut self,
        namespace: &str,
        pods: &Pods,
        moved: &mut HashSet<Wanted>,
        near: &mut BTreeSet<String>,
    ) {
        let before = self.by_namespace.remove(namespace).unwrap_or_default();
        let now: Vec<Claim> = pods.values().map(|pod| claim(&pod.workload)).collect();
        moved.extend(before.iter().chain(&now).map(|(pod, _)| Wanted::Pod(pod.key.clone())));
        let ips: HashSet<IpAddr> = before.iter().chain(&now).flat_map(|(_, ips)| ips.iter().copied()).collect();
        moved.extend(ips.iter().copied().map(Wanted::Address));
        // Whoever else claims them now is who else claimed them before.
        for ip in &ips {
            let others = self.by_address.get(ip).into_iter().flatten().filter(|claim| claim.key.0 != namespace);
            near.extend(others.map(|claim| claim.key.0.clone()));
        }
        for (pod, ips) in before {
            for ip in ips {
                let Some(claims) = self.by_address.get_mut(&ip) else { continue };
                if let Ok(at) = claims.binary_search(&pod) {
                    claims.remove(at);
                }
                if claims.is_empty() {
                    self.by_address.remove(&ip);
                }
            }
        }
        for (pod, ips) in &now {
            for ip in ips {
                let claims = self.by_address.entry(*ip).or_default();
                // It may report an address twice.
                if let Err(at) = claims.binary_search(pod) {
                    claims.insert(at, pod.clone());
                }
            }
        }
        if !now.is_empty() {
            self.by_namespace.insert(namespace.to_owned(), now);
        }
    }

    /// The same for a namespace's Services and their cluster IPs.
    pub(super) fn replace_services(&mut self, namespace: &str, now: Vec<(Key, IpAddr)>, moved: &mut HashSet<Wanted>) {
        let before = self.services.remove(namespace).unwrap_or_default();
        moved.extend(before.iter().chain(&now).map(|(_, ip)| Wanted::Address(*ip)));
        for (service, ip) in before {
            let Some(claims) = self.cluster_ips.get_mut(&ip) else { continue };
            claims.remove(&service);
            if claims.is_empty() {
                self.cluster_ips.remove(&ip);
            }
        }
        for (service, ip) in &now {
            self.cluster_ips.entry(*ip).or_default().insert(service.clone());
        }
        if !now.is_empty() {
            self.services.insert(namespace.to_owned(), now);
        }
    }

    /// Whose own an address is.
    pub(super) fn owner(&self, ip: IpAddr) -> Option<ObjectRef> {
        let service = self.cluster_ips.get(&ip).and_then(BTreeSet::first).map(|key| (Kind::Service, key));
        let (kind, (namespace, name)) = service.or_else(|| Some((Kind::Pod, self.at(ip)?)))?;
        Some(ObjectRef { kind, namespace: namespace.clone(), name: name.clone() })
    }

    /// The pod that has an address; of several the one that proxies find there.
    pub(super) fn at(&self, ip: IpAddr) -> Option<&Key> {
        self.by_address.get(&ip)?.first().map(|claimant| &claimant.key)
    }

    /// Two pods with one address: a mistake, or the moment in which an address is used again. Proxies take it for the one that
    /// [`mesh_model::Mesh::workload_at`] names, and whoever answers there with another identity is refused; so nobody gets more than he
    /// had, and the others are told that they are not reached.
    pub(super) fn shared(&self, pods: &Pods, problems: &mut Vec<Problem>) {
        // One that leaves has had its address: that is how addresses are used again.
        for pod in pods.values().filter(|pod| !pod.workload.host_network && pod.ends.is_none()) {
            let key = key_of(&pod.workload);
            for ip in pod.workload.addresses.iter().map(IpAddr::to_canonical) {
                let Some((namespace, name)) = self.at(ip).filter(|first| **first != key) else { continue };
                let text = format!(
                    "reports the address {ip}, which Pod {namespace}/{name} reports as well: connections to it are taken for that \
                     pod's, and this one is not reached there until one of the two is gone"
                );
                problems.push(Problem::new(Kind::Pod, &key, text));
            }
        }
    }
}

fn claim(workload: &Workload) -> Claim {
    let ips = match workload.host_network {
        true => Vec::new(),
        false => workload.addresses.iter().map(IpAddr::to_canonical).collect(),
    };
    (Arc::new(Claimant { rank: workload.claim_rank(), key: key_of(workload) }), ips)
}

fn key_of(workload: &Workload) -> Key {
    (workload.pod.namespace.clone(), workload.pod.name.clone())
}

impl Ord for Claimant {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claimant {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Claimant {}
