//! One configuration as it is served: resources by name with versions made from their content, and which identities each node may
//! ask certificates for. Immutable; the source publishes a new one, readers compare.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{policy_resource, service_resource, workload_resource};
use mesh_model::{Identity, Tunnel};

use crate::compile::Compiled;

/// Resources of one type, by name.
pub type Table = Arc<BTreeMap<String, Arc<SavedResource>>>;

/// One configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with each change; 0 is the empty one before the source was read.
    pub generation: u64,
    /// Workloads and services.
    pub addresses: Table,
    /// Policies.
    pub policies: Table,
    /// Node → identities of the mesh pods bound to it.
    identities: HashMap<String, HashSet<Identity>>,
}

impl Snapshot {
    /// From what was compiled. Resources that did not change are shared with `last`.
    pub fn new(compiled: &Compiled, last: &Self) -> Self {
        let addresses = table(
            compiled.workloads.iter().map(workload_resource).chain(compiled.services.iter().map(service_resource)),
            &last.addresses,
        );
        let policies = table(compiled.policies.iter().map(policy_resource), &last.policies);
        let mut identities: HashMap<String, HashSet<Identity>> = HashMap::new();
        // Pods outside the mesh have no identity: whoever holds a node's token gets nothing in their name.
        for workload in compiled.workloads.iter().filter(|workload| workload.tunnel == Tunnel::Hbone) {
            if let Ok(identity) = workload.identity() {
                identities.entry(workload.node.clone()).or_default().insert(identity);
            }
        }
        Self { generation: last.generation + 1, addresses, policies, identities }
    }

    /// Whether both say the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let same = |a: &Table, b: &Table| {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|((name, x), (other, y))| name == other && (Arc::ptr_eq(x, y) || x.version == y.version))
        };
        same(&self.addresses, &other.addresses)
            && same(&self.policies, &other.policies)
            && self.identities == other.identities
    }

    /// Whether a mesh pod with this identity is bound to the node.
    pub fn may_have(&self, node: &str, identity: &Identity) -> bool {
        self.identities.get(node).is_some_and(|identities| identities.contains(identity))
    }

    /// Everything, in the order in which it must be applied: policies before the workloads that list them.
    pub fn resources(&self) -> impl Iterator<Item = &SavedResource> {
        self.policies.values().chain(self.addresses.values()).map(|resource| &**resource)
    }
}

fn table(resources: impl Iterator<Item = SavedResource>, last: &Table) -> Table {
    let entries = resources.map(|resource| {
        let name = resource.name.clone();
        match last.get(&name) {
            Some(same) if same.version == resource.version => (name, same.clone()),
            _ => (name, Arc::new(resource)),
        }
    });
    Arc::new(entries.collect())
}
