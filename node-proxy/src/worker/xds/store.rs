//! What is held: the records as they came (for versions and for the last good configuration) and the mesh made of them.
//!
//! Nothing here widens: a policy that cannot be understood stands as one that refuses, a workload or service that cannot be used is
//! taken out, and both are named so that the control plane hears of it.

use std::collections::{BTreeMap, HashMap};

use mesh_api::xds::discovery::Resource as WireResource;
use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{self, ADDRESS_TYPE, AUTHORIZATION_TYPE, Resource};
use mesh_model::policy::PolicyKey;
use mesh_model::{Mesh, ServiceKey, TrustDomains, WorkloadUid};

/// The types that are asked for, in the order in which they are asked: policies first.
pub(super) const TYPES: [&str; 2] = [AUTHORIZATION_TYPE, ADDRESS_TYPE];

/// See the module.
#[derive(Debug)]
pub(super) struct Store {
    mesh: Mesh,
    held: HashMap<&'static str, HashMap<String, Held>>,
}

/// One record as it came.
#[derive(Debug)]
struct Held {
    version: String,
    body: Vec<u8>,
    /// The version of a refused record is not told on reconnect.
    accepted: bool,
}

/// What one answer did.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The mesh is another one.
    pub(super) changed: bool,
    /// What is held is something else (the mesh may be the same).
    pub(super) dirty: bool,
    /// `name: cause` of each record that was refused.
    pub(super) rejected: Vec<String>,
}

impl Store {
    /// Nothing, in a mesh of these trust domains.
    pub(super) fn new(domains: &TrustDomains) -> Self {
        let mut mesh = Mesh::default();
        mesh.set_trust_domains(domains.clone());
        Self { mesh, held: HashMap::new() }
    }

    /// The mesh as it is; the copy shares the records.
    pub(super) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// How many records of a type are held.
    pub(super) fn count(&self, type_url: &str) -> usize {
        self.held.get(type_url).map_or(0, HashMap::len)
    }

    /// Names and versions to tell on a new stream. What was refused is told without a version: it is sent again, or said to be gone.
    pub(super) fn versions(&self, type_url: &str) -> BTreeMap<String, String> {
        let held = self.held.get(type_url).into_iter().flatten();
        let version = |held: &Held| if held.accepted { held.version.clone() } else { String::new() };
        held.map(|(name, held)| (name.clone(), version(held))).collect()
    }

    /// Everything that is held, ordered, for the last good configuration.
    pub(super) fn resources(&self) -> Vec<SavedResource> {
        let mut out: Vec<SavedResource> = self
            .held
            .iter()
            .flat_map(|(type_url, held)| {
                held.iter().map(|(name, held)| SavedResource {
                    type_url: (*type_url).to_owned(),
                    name: name.clone(),
                    version: held.version.clone(),
                    body: held.body.clone(),
                })
            })
            .collect();
        // Policies sort before what lists them.
        let order = |type_url: &str| TYPES.iter().position(|known| *known == type_url);
        out.sort_unstable_by(|a, b| (order(&a.type_url), &a.name).cmp(&(order(&b.type_url), &b.name)));
        out
    }

    /// From a last good configuration. Records that this build cannot read are treated as those of an answer.
    pub(super) fn load(domains: &TrustDomains, resources: Vec<SavedResource>) -> (Self, Vec<String>) {
        let mut store = Self::new(domains);
        let mut applied = Applied::default();
        for SavedResource { type_url, name, version, body } in resources {
            match known(&type_url) {
                Some(type_url) => store.put(type_url, name, version, body, &mut applied),
                None => applied.rejected.push(format!("{name}: unknown type {type_url}")),
            }
        }
        (store, applied.rejected)
    }

    /// Applies one answer of one type.
    pub(super) fn apply(
        &mut self,
        type_url: &'static str,
        resources: Vec<WireResource>,
        removed: Vec<String>,
    ) -> Applied {
        let mut applied = Applied::default();
        for name in removed {
            if self.held.entry(type_url).or_default().remove(&name).is_some() {
                applied.dirty = true;
            }
            applied.changed |= self.take_out(type_url, &name);
        }
        for WireResource { version, resource, name, .. } in resources {
            match resource {
                Some(any) if any.type_url == type_url => self.put(type_url, name, version, any.value, &mut applied),
                Some(any) => {
                    let cause = format!("{name}: of type {:?} in an answer of another", any.type_url);
                    self.refuse(type_url, name, version, any.value, cause, &mut applied);
                }
                None => {
                    let cause = format!("{name}: without content");
                    self.refuse(type_url, name, version, Vec::new(), cause, &mut applied);
                }
            }
        }
        applied
    }

    fn put(&mut self, type_url: &'static str, name: String, version: String, body: Vec<u8>, applied: &mut Applied) {
        match xds::decode(type_url, &name, &body) {
            Ok(resource) => {
                applied.changed |= match resource {
                    Resource::Workload(workload) => {
                        self.mesh.remove_service_of(&name) | self.mesh.apply_workload(workload)
                    }
                    Resource::Service(service) => {
                        self.mesh.remove_workload_of(&name) | self.mesh.apply_service(service)
                    }
                    Resource::Policy(policy) => self.mesh.apply_policy(policy),
                };
                self.hold(type_url, name, Held { version, body, accepted: true }, applied);
            }
            Err(error) => {
                let cause = mesh_daemon::causes(&error);
                self.refuse(type_url, name, version, body, cause, applied);
            }
        }
    }

    /// A record that cannot be used: closed, held for the next start, and named.
    fn refuse(
        &mut self,
        type_url: &'static str,
        name: String,
        version: String,
        body: Vec<u8>,
        cause: String,
        applied: &mut Applied,
    ) {
        applied.changed |= if type_url == AUTHORIZATION_TYPE {
            let known = name.parse::<PolicyKey>().ok().and_then(|key| self.mesh.policy(&key).cloned());
            self.mesh.apply_policy(xds::refusing_policy(&name, &body, known.as_deref()))
        } else {
            self.take_out(type_url, &name)
        };
        applied.rejected.push(cause);
        self.hold(type_url, name, Held { version, body, accepted: false }, applied);
    }

    fn hold(&mut self, type_url: &'static str, name: String, held: Held, applied: &mut Applied) {
        let before = self.held.entry(type_url).or_default().get(&name);
        if before.is_none_or(|before| before.version != held.version || before.body != held.body) {
            applied.dirty = true;
            self.held.entry(type_url).or_default().insert(name, held);
        }
    }

    /// Takes whatever has this name out of the mesh; whether there was something.
    fn take_out(&mut self, type_url: &str, name: &str) -> bool {
        if type_url == AUTHORIZATION_TYPE {
            // A name that is no key stands under the key that `refusing_policy` gave it.
            let key = name.parse().unwrap_or_else(|_| PolicyKey { namespace: String::new(), name: name.to_owned() });
            self.mesh.remove_policy(&key)
        } else {
            self.mesh.remove_workload_of(name) | self.mesh.remove_service_of(name)
        }
    }
}

/// Removal by the name a record travels under.
trait ByName {
    fn remove_workload_of(&mut self, name: &str) -> bool;
    fn remove_service_of(&mut self, name: &str) -> bool;
}

impl ByName for Mesh {
    fn remove_workload_of(&mut self, name: &str) -> bool {
        self.remove_workload(&WorkloadUid(name.to_owned()))
    }

    fn remove_service_of(&mut self, name: &str) -> bool {
        name.parse::<ServiceKey>().is_ok_and(|key| self.remove_service(&key))
    }
}

/// One of [`TYPES`].
pub(super) fn known(type_url: &str) -> Option<&'static str> {
    TYPES.into_iter().find(|known| *known == type_url)
}
