//! Which pods have which addresses, in all namespaces: a slice may name a pod of another one by its address alone, and two pods may
//! claim the same.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::manifests::{Key, Kind};
use mesh_model::Workload;

use super::Problem;
use super::place::Place;
use super::workloads::{self, Pods};

/// What a namespace looks for outside of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Pod(Key),
    Address(IpAddr),
}

/// A pod and what it claims.
type Claim = (Arc<Key>, Vec<IpAddr>);

/// The claims of all pods. A host-network pod has its node's address, which it shares with others rightly: it claims none.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_address: HashMap<IpAddr, Vec<Arc<Key>>>,
    by_namespace: BTreeMap<String, Vec<Claim>>,
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
        let mut note = |key: &Key, ips: &[IpAddr]| {
            moved.insert(Wanted::Pod(key.clone()));
            moved.extend(ips.iter().copied().map(Wanted::Address));
        };
        for (key, ips) in self.by_namespace.remove(namespace).unwrap_or_default() {
            note(&key, &ips);
            for ip in ips {
                let Some(claims) = self.by_address.get_mut(&ip) else { continue };
                claims.retain(|claim| *claim != key);
                near.extend(claims.iter().map(|claim| claim.0.clone()));
                if claims.is_empty() {
                    self.by_address.remove(&ip);
                }
            }
        }
        let mut known = Vec::with_capacity(pods.len());
        for pod in pods.values() {
            let workload = &pod.workload;
            let key = Arc::new((workload.pod.namespace.clone(), workload.pod.name.clone()));
            let ips: Vec<IpAddr> = match workload.host_network {
                true => Vec::new(),
                false => workload.addresses.iter().map(IpAddr::to_canonical).collect(),
            };
            note(&key, &ips);
            for ip in &ips {
                let claims = self.by_address.entry(*ip).or_default();
                near.extend(claims.iter().map(|claim| claim.0.clone()));
                if !claims.contains(&key) {
                    claims.push(key.clone());
                }
            }
            known.push((key, ips));
        }
        if !known.is_empty() {
            self.by_namespace.insert(namespace.to_owned(), known);
        }
        near.remove(namespace);
    }

    /// The pod that has an address; of several the one that proxies find there.
    pub(super) fn at(&self, ip: IpAddr, place: &Place<'_>, pods: &Pods) -> Option<Key> {
        match self.by_address.get(&ip)?.as_slice() {
            [one] => Some((**one).clone()),
            claims => ordered(claims, place, pods).first().map(key_of),
        }
    }

    /// Two pods with one address: a mistake, or the moment in which an address is used again. Proxies take it for the one that
    /// [`mesh_model::Mesh::workload_at`] names, and whoever answers there with another identity is refused; so nobody gets more than he
    /// had, and the others are told that they are not reached.
    pub(super) fn shared(&self, place: &Place<'_>, pods: &Pods, problems: &mut Vec<Problem>) {
        for pod in pods.values().filter(|pod| !pod.workload.host_network) {
            // One that leaves has had its address: that is how addresses are used again.
            if pod.ends.is_some() {
                continue;
            }
            for ip in pod.workload.addresses.iter().map(IpAddr::to_canonical) {
                let Some(claims) = self.by_address.get(&ip).filter(|claims| claims.len() > 1) else { continue };
                let ordered = ordered(claims, place, pods);
                let Some(first) = ordered.first().filter(|first| first.uid != pod.workload.uid) else { continue };
                let text = format!(
                    "reports the address {ip}, which Pod {} reports as well: connections to it are taken for that pod's, and this one \
                     is not reached there until one of the two is gone",
                    first.pod
                );
                problems.push(Problem::new(Kind::Pod, &key_of(&pod.workload), text));
            }
        }
    }
}

/// Those who claim an address, the one that has it first.
fn ordered(claims: &[Arc<Key>], place: &Place<'_>, pods: &Pods) -> Vec<Workload> {
    let mut workloads: Vec<Workload> =
        claims.iter().filter_map(|key| workloads::find(place, pods, key)).map(|pod| pod.workload.clone()).collect();
    workloads.sort_by(Workload::claim_order);
    workloads
}

fn key_of(workload: &Workload) -> Key {
    (workload.pod.namespace.clone(), workload.pod.name.clone())
}
