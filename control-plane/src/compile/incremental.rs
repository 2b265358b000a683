//! Compiles again what a change may have touched, and nothing else.
//!
//! The unit is the namespace, since that is what Kubernetes' own references stay within. A namespace is compiled again when something in
//! it changed ([`Stamps`]), and when what it has to do with others did: a pod of theirs that a slice of its own names or may name, an
//! address that pods of both claim or a Service of one names as external, a service of theirs that a pod of its own stands behind. A
//! change of what all look at (policies of the root namespace, nodes, a document that may be a NetworkPolicy) compiles everything. What
//! comes out is what compiling from nothing gives: `tests::incremental` compares the two after every step.
//!
//! [`Stamps`]: mesh_api::manifests::Stamps

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mesh_api::manifests::{Kind, Objects, Rejected};

use super::addresses::{Addresses, Wanted};
use super::endpoints::{self, Abroad, Lent};
use super::fate::{Findings, Told, Totals};
use super::network_policy::{self, Doubts};
use super::place::Place;
use super::workloads::{self, Compiling, Pods};
use super::{CompileConfig, Problem, Records, authorization, peer_authentication, services};

/// Remembers what it compiled. A new one knows nothing: the first time it compiles everything.
#[derive(Debug, Default)]
pub struct Compiler {
    shared: Option<Shared>,
    parts: BTreeMap<String, Part>,
    addresses: Addresses,
    /// Of the root namespace's policies.
    root: (Vec<Told>, Vec<Problem>),
}

/// What a compilation changed.
#[derive(Debug)]
pub struct Changes {
    /// Whether these are all namespaces there are: nothing else is left of what was there before.
    pub whole: bool,
    /// The records of each namespace that was compiled; of one that is gone there are none.
    pub namespaces: BTreeMap<String, Records>,
}

/// What every namespace is compiled with.
#[derive(Debug, PartialEq, Eq)]
struct Shared {
    root_policies: [u64; 2],
    /// With the first PeerAuthentication anywhere comes the policy for all that are STRICT.
    peer_authentications: bool,
    nodes: u64,
    doubts: Doubts,
}

/// What is remembered of a namespace.
#[derive(Debug)]
struct Part {
    stamp: u64,
    abroad: Abroad,
    findings: Findings,
}

/// A namespace that is being compiled.
struct Draft {
    pods: Pods,
    abroad: Abroad,
    findings: Findings,
}

impl Compiler {
    /// Brings what was compiled up to date. `rejected` are the documents that could not be read: one of them may have been a
    /// NetworkPolicy, and then pods that it might select count as selected.
    pub fn compile(&mut self, objects: &Objects, rejected: &[Rejected], config: &CompileConfig) -> Changes {
        fn place<'a>(objects: &'a Objects, config: &'a CompileConfig, namespace: &'a str) -> Place<'a> {
            Place { objects, config, namespace }
        }
        let stamps = stamps(objects, config);
        let shared = Shared::of(objects, rejected, config);
        let whole = self.shared.is_none();
        let stale = self.stale(&stamps, &shared);

        // Pods first: who has which address has to be known before a slice is read.
        let (mut drafts, mut moved, mut near) = (BTreeMap::new(), HashSet::new(), BTreeSet::new());
        for namespace in stale {
            let place = place(objects, config, &namespace);
            let draft = Draft::new(&place);
            self.addresses.replace(&namespace, &draft.pods, &mut moved, &mut near);
            self.addresses.replace_services(&namespace, services::claims(&place), &mut moved);
            drafts.insert(namespace, draft);
        }
        let looking = self.parts.iter().filter(|(_, part)| part.abroad.wanted.iter().any(|one| moved.contains(one)));
        near.extend(looking.map(|(namespace, _)| namespace.clone()));
        let (mut new, mut borrowers) = (near, BTreeSet::new());
        new.retain(|namespace| !drafts.contains_key(namespace));
        for namespace in new {
            let draft = Draft::new(&place(objects, config, &namespace));
            drafts.insert(namespace, draft);
        }
        // Then slices, and whoever stands, or stood, behind services of another namespace.
        for (namespace, draft) in &mut drafts {
            draft.attach(&place(objects, config, namespace), &self.addresses);
            let before = self.parts.get(namespace).map(|part| &part.abroad.lent);
            borrowers
                .extend(before.into_iter().chain([&draft.abroad.lent]).flat_map(Lent::keys).map(|key| key.0.clone()));
        }
        borrowers.retain(|namespace| !drafts.contains_key(namespace));
        for namespace in borrowers {
            let mut draft = Draft::new(&place(objects, config, &namespace));
            draft.attach(&place(objects, config, &namespace), &self.addresses);
            drafts.insert(namespace, draft);
        }
        let unchanged = self.parts.iter().filter(|(namespace, _)| !drafts.contains_key(*namespace));
        let abroad = drafts.values().map(|draft| &draft.abroad).chain(unchanged.map(|(_, part)| &part.abroad));
        let mut lent = Lent::new();
        for (pod, behind) in abroad.flat_map(|abroad| &abroad.lent) {
            // Of several lenders each names services of its own.
            lent.entry(pod.clone()).or_default().extend(behind);
        }

        let mut namespaces = BTreeMap::new();
        for (namespace, mut draft) in drafts {
            let records = draft.finish(&place(objects, config, &namespace), &self.addresses, &lent, &shared.doubts);
            let Draft { pods: _, abroad, findings } = draft;
            match stamps.get(&namespace) {
                Some(&stamp) => drop(self.parts.insert(namespace.clone(), Part { stamp, abroad, findings })),
                None => drop(self.parts.remove(&namespace)),
            }
            namespaces.insert(namespace, records);
        }
        self.shared = Some(shared);
        self.root = self.tell_root(config);
        Changes { whole, namespaces }
    }

    /// The namespaces that cannot be as they were.
    fn stale(&self, stamps: &BTreeMap<String, u64>, shared: &Shared) -> BTreeSet<String> {
        let everything = self.shared.as_ref() != Some(shared);
        let known = stamps.iter().filter(|(namespace, stamp)| {
            everything || self.parts.get(*namespace).is_none_or(|part| part.stamp != **stamp)
        });
        let gone = self.parts.keys().filter(|namespace| !stamps.contains_key(*namespace));
        known.map(|(namespace, _)| namespace).chain(gone).cloned().collect()
    }

    /// What becomes of each policy, in no order.
    pub fn told(&self) -> impl Iterator<Item = &Told> {
        self.parts.values().flat_map(|part| &part.findings.told).chain(&self.root.0)
    }

    /// What could not be carried out as written, in no order.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.parts.values().flat_map(|part| &part.findings.problems).chain(&self.root.1)
    }

    fn tell_root(&self, config: &CompileConfig) -> (Vec<Told>, Vec<Problem>) {
        let mut problems = Vec::new();
        let totals = Totals::of(self.parts.values().map(|part| &part.findings));
        let open = self.parts.get(&config.root_namespace).into_iter().flat_map(|part| &part.findings.open);
        let told = open.map(|(fate, means)| totals.tell(fate, means, &mut problems)).collect();
        (told, problems)
    }
}

impl Shared {
    fn of(objects: &Objects, rejected: &[Rejected], config: &CompileConfig) -> Self {
        let stamps = objects.stamps();
        let policies = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
        Self {
            root_policies: policies.map(|kind| stamps.of(&config.root_namespace, kind)),
            peer_authentications: !objects.peer_authentications.is_empty(),
            nodes: stamps.of("", Kind::Node),
            doubts: Doubts::of(rejected),
        }
    }
}

/// The namespaces there are, each with its stamp; the root namespace is always there.
fn stamps(objects: &Objects, config: &CompileConfig) -> BTreeMap<String, u64> {
    let root = [(config.root_namespace.as_str(), 0)].into_iter();
    let known = objects.stamps().namespaces().filter(|(namespace, _)| !namespace.is_empty());
    root.chain(known).map(|(namespace, stamp)| (namespace.to_owned(), stamp)).collect()
}

impl Draft {
    fn new(place: &Place<'_>) -> Self {
        let mut findings = Findings::default();
        let pods = workloads::workloads(place, &mut findings.problems);
        Self { pods, abroad: Abroad::default(), findings }
    }

    fn attach(&mut self, place: &Place<'_>, addresses: &Addresses) {
        self.abroad = endpoints::attach(place, addresses, &mut self.pods, &mut self.findings.problems);
        self.abroad.wanted.extend(services::external(place).into_iter().map(Wanted::Address));
    }

    /// `lent` is what all namespaces lend.
    fn finish(&mut self, place: &Place<'_>, addresses: &Addresses, lent: &Lent, doubts: &Doubts) -> Records {
        let Self { pods, abroad, findings } = self;
        for ((_, name), behind) in place.own(lent) {
            let Some(pod) = workloads::find_mut(place, pods, name) else { continue };
            pod.behind.extend(behind);
        }
        for Compiling { workload, behind, .. } in pods.values_mut() {
            behind.settle(workload);
        }
        addresses.shared(pods, &mut findings.problems);
        network_policy::mark(place, doubts, pods);
        let services = services::services(place, addresses, &mut findings.problems);
        let mut policies = authorization::policies(place, pods, &abroad.lent, findings);
        policies.extend(peer_authentication::policies(place, pods, findings));
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        findings.problems.sort();
        findings.problems.dedup();
        let pods = std::mem::take(pods);
        let ends = pods.iter().filter_map(|(uid, pod)| Some((uid.clone(), pod.ends?))).collect();
        let mut workloads: Vec<_> = pods.into_values().map(|pod| pod.workload).collect();
        for workload in &mut workloads {
            workload.policies.sort();
            workload.policies.dedup();
        }
        Records { workloads, ends, services, policies }
    }
}
