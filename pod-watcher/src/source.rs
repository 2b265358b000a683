//! What this node's pods should be: records made from Kubernetes objects. Pure; the watching is in [`crate::watch`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_api::link::state_dir::Standing;
use mesh_api::manifests::{self, Enrolment, NotEnrolled, Objects, Outside};
use mesh_model::{Exclusions, PodName, PodUid};

/// One pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Its uid.
    pub uid: PodUid,
    /// What kubelet and the runtime call it by, if it says that it is a static pod's mirror. Anybody may say so of anybody: nothing
    /// follows from it alone.
    pub static_uid: Option<PodUid>,
    /// Its name.
    pub name: PodName,
    /// Its service account.
    pub service_account: String,
    /// Ports of kubelet's probes and hooks.
    pub probe_ports: Vec<u16>,
    /// `status.podIPs`: for pods that were there before us; an ADD brings its own.
    pub addresses: Vec<IpAddr>,
    /// What of it stays outside of capture; or what is wrong with what it says, and then nothing does.
    pub exclusions: Result<Exclusions, String>,
    /// In the mesh or not.
    pub enrolment: Enrolment,
    /// It is being deleted.
    pub terminating: bool,
}

/// Everything known from the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Pods of this node.
    pub pods: BTreeMap<PodUid, PodRecord>,
    /// The same by name.
    pub by_name: BTreeMap<PodName, PodUid>,
    /// What each namespace is to the mesh: for the plugin, when we are down.
    pub namespaces: BTreeMap<String, Standing>,
    /// Pods whose word about the mesh changes too fast to be followed.
    pub unsettled: BTreeSet<PodUid>,
}

impl PodRecord {
    /// Whether it asks for the mesh and cannot be had.
    pub fn has_other_kernel(&self) -> bool {
        self.enrolment == Enrolment::Plain(NotEnrolled::OtherKernel)
    }
}

impl Records {
    /// The pod that the runtime means by a name and, where it says one, by a uid (a name is used again). For a static pod it says the
    /// one of kubelet's. A claimed uid counts only together with the name, so nobody gets another pod's attachment by it.
    pub fn meant(&self, name: &PodName, said: &str) -> Option<&PodUid> {
        let uid = self.by_name.get(name)?;
        let claimed = self.pods.get(uid)?.static_uid.as_ref();
        (said.is_empty() || said == uid.as_str() || claimed.is_some_and(|claimed| claimed.as_str() == said))
            .then_some(uid)
    }

    /// Who says that a pod of this uid is theirs.
    pub fn claims(&self, named: &PodUid) -> impl Iterator<Item = &PodRecord> {
        self.pods.values().filter(move |record| record.static_uid.as_ref() == Some(named))
    }

    /// The mirror pod that has taken the place of one that is gone: kubelet makes it anew, and the static pod runs on.
    pub fn successor(&self, gone: &PodRecord) -> Option<&PodUid> {
        let named = gone.static_uid.as_ref().filter(|_| !self.pods.contains_key(&gone.uid))?;
        self.meant(&gone.name, named.as_str())
    }
}

/// Which pods and namespaces are ours to decide about.
#[derive(Clone, Debug)]
pub struct Scope {
    /// This node.
    pub node: String,
    /// Never enrolled.
    pub excluded: Vec<String>,
    /// See [`Outside::runtimes`].
    pub runtimes: Vec<String>,
    /// The mesh's own namespace.
    pub own: String,
}

impl Scope {
    /// What a namespace is by configuration alone.
    pub fn fixed(&self, namespace: &str) -> Option<Standing> {
        if namespace == self.own {
            Some(Standing::Own)
        } else if self.excluded.iter().any(|excluded| excluded == namespace) {
            Some(Standing::Excluded)
        } else {
            None
        }
    }

    /// The records of these objects.
    pub fn records(&self, objects: &Objects) -> Records {
        let mut records = Records::default();
        let namespaces = self.excluded.iter().chain([&self.own]).cloned().collect();
        let outside = Outside { namespaces, runtimes: self.runtimes.clone() };
        for name in objects.namespaces.keys() {
            records.namespaces.insert(name.clone(), self.fixed(name).unwrap_or(Standing::Plain));
        }
        for (name, namespace) in &objects.namespaces {
            // Labelled: a pod that carries no label of its own will be in.
            if self.fixed(name).is_none()
                && manifests::enrolled(Some(namespace), &unlabelled(name), &outside).is_enrolled()
            {
                records.namespaces.insert(name.clone(), Standing::Enrolled);
            }
        }
        for pod in objects.pods.values() {
            let name = manifests::pod_name(pod);
            let enrolment = manifests::enrolled(objects.namespaces.get(&name.namespace), pod, &outside);
            if enrolment.is_enrolled() {
                // By its own label in a plain namespace: the plugin must not let any pod there pass unasked.
                records.namespaces.insert(name.namespace.clone(), Standing::Enrolled);
            }
            let Some(uid) = manifests::pod_uid(pod) else { continue };
            if manifests::node_name(pod) != Some(self.node.as_str()) {
                continue;
            }
            let record = PodRecord {
                uid: uid.clone(),
                static_uid: manifests::static_uid(pod),
                name: name.clone(),
                service_account: manifests::service_account(pod).to_owned(),
                probe_ports: manifests::probe_ports(pod),
                addresses: manifests::pod_ips(pod),
                exclusions: manifests::exclusions(pod),
                enrolment,
                terminating: pod.metadata.deletion_timestamp.is_some(),
            };
            records.by_name.insert(name, uid.clone());
            records.pods.insert(uid, record);
        }
        for name in self.excluded.iter().chain([&self.own]) {
            if let Some(standing) = self.fixed(name) {
                records.namespaces.insert(name.clone(), standing);
            }
        }
        records
    }
}

/// A pod that says nothing about itself.
fn unlabelled(namespace: &str) -> manifests::Pod {
    let mut pod = manifests::Pod::default();
    pod.metadata.namespace = Some(namespace.to_owned());
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFESTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.io/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: tools}
---
apiVersion: v1
kind: Namespace
metadata: {name: mixed}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {culvert.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u1}
spec: {nodeName: n1, serviceAccountName: buyer, containers: [{name: c, image: i, livenessProbe: {tcpSocket: {port: 8080}}}]}
status: {podIPs: [{ip: 198.18.1.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: mixed, uid: u2, labels: {culvert.io/mesh: enabled}}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, uid: u3}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
";

    fn records() -> Records {
        records_of(MANIFESTS)
    }

    fn records_of(manifests: &str) -> Records {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("all.yaml"), manifests).expect("written");
        let (objects, rejected) = manifests::load_dir(dir.path(), &Objects::default());
        assert_eq!(rejected, []);
        let scope = Scope {
            node: "n1".to_owned(),
            excluded: vec!["kube-system".to_owned()],
            runtimes: vec!["kata".to_owned()],
            own: "culvert-system".to_owned(),
        };
        scope.records(&objects)
    }

    #[test]
    fn only_pods_of_this_node_have_records() {
        let records = records();
        let uids: Vec<&str> = records.pods.keys().map(PodUid::as_str).collect();
        assert_eq!(uids, ["u1", "u3"]);
        let cart = records.pods.values().next().expect("first");
        assert_eq!((cart.service_account.as_str(), cart.probe_ports.as_slice()), ("buyer", [8080].as_slice()));
        assert!(cart.enrolment.is_enrolled());
    }

    /// A mirror pod of `shop`.
    fn mirror(name: &str, uid: &str, named: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {uid}, annotations: \
             {{kubernetes.io/config.mirror: {named}}}}}\nspec: {{nodeName: n1, containers: [{{name: c, image: i}}]}}\n"
        )
    }

    #[test]
    fn a_static_pod_is_meant_by_its_name_and_either_of_its_uids() {
        let records = records_of(&mirror("registry-n1", "u4", "hash"));
        let name = |name: &str| PodName { namespace: "shop".to_owned(), name: name.to_owned() };
        for said in ["u4", "hash", ""] {
            assert_eq!(records.meant(&name("registry-n1"), said).map(PodUid::as_str), Some("u4"), "{said}");
        }
        assert_eq!(records.meant(&name("registry-n1"), "other"), None);
        assert_eq!(records.meant(&name("other"), "hash"), None);
    }

    #[test]
    fn a_claim_of_another_pods_uid_brings_no_attachment_of_it() {
        let records = records_of(&format!("{MANIFESTS}{}", mirror("thief", "u4", "u1")));
        let name = |name: &str| PodName { namespace: "shop".to_owned(), name: name.to_owned() };
        assert_eq!(records.meant(&name("cart"), "u1").map(PodUid::as_str), Some("u1"));
        assert_eq!(records.meant(&name("cart"), "u4"), None);
    }

    #[test]
    fn a_mirror_pod_that_was_made_anew_succeeds_the_one_before_and_nobody_else_does() {
        let uid = |text: &str| PodUid::parse(text).expect("uid");
        let before = records_of(&mirror("registry-n1", "u4", "hash"));
        let gone = &before.pods[&uid("u4")];
        let succeeded = |now: &str| records_of(now).successor(gone).cloned();
        assert_eq!(succeeded(&mirror("registry-n1", "u5", "hash")), Some(uid("u5")));
        assert_eq!(succeeded(&mirror("registry-n1", "u5", "another")), None);
        assert_eq!(succeeded(&mirror("pretender", "u5", "hash")), None);
        assert_eq!(before.successor(gone), None, "it is there");
        assert_eq!(records_of(MANIFESTS).successor(&records().pods[&uid("u1")]), None, "no static pod");
    }

    #[test]
    fn a_namespace_is_plain_only_if_nothing_in_it_is_in_the_mesh() {
        let standing = records().namespaces;
        let want = [
            ("culvert-system", Standing::Own),
            ("kube-system", Standing::Excluded),
            ("mixed", Standing::Enrolled),
            ("shop", Standing::Enrolled),
            ("tools", Standing::Plain),
        ];
        assert_eq!(standing.into_iter().collect::<Vec<_>>(), want.map(|(name, standing)| (name.to_owned(), standing)));
    }
}
