//! PeerAuthentication → DENY policies against callers without an identity (Istio's conversion, ambient-protocols section 4.5).
//!
//! The mode of a workload is its own PeerAuthentication's, else its namespace's, else the mesh's, else the configured default; of
//! several at one level the oldest decides. STRICT lists one static policy. Port-level exceptions become a policy of their own, which
//! then stands instead of the static one.

use std::collections::BTreeMap;

use mesh_api::manifests::security::{Invalid, Mode, Mtls, PeerSpec};
use mesh_api::manifests::{Key, Kind, PeerAuthentication};
use mesh_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};

use super::DefaultMode;
use super::authorization::enforcing;
use super::fate::{Fate, Findings, Outcome};
use super::place::Place;
use super::workloads::Pods;

/// Istio's names, so that people find what they know. No object can be called so: Kubernetes allows no underscore.
const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

/// The namespace's policies; listed at the workloads that they apply to.
pub(super) fn policies(place: &Place<'_>, pods: &mut Pods, findings: &mut Findings) -> Vec<Policy> {
    let Place { objects, config, .. } = *place;
    let all = || place.own(&objects.peer_authentications).chain(place.of_root(&objects.peer_authentications));
    let mut fates: BTreeMap<&Key, Fate> =
        all().map(|(key, _)| (key, Fate::new(Kind::PeerAuthentication, key, false))).collect();
    let mut policies = Vec::new();
    let strict = PolicyKey { namespace: config.root_namespace.clone(), name: STATIC_STRICT.to_owned() };
    let may_be_strict = config.default_mode == DefaultMode::Strict || !objects.peer_authentications.is_empty();
    if place.is_root() && may_be_strict {
        policies.push(deny(strict.clone(), vec![Rule { clauses: vec![no_identity()] }]));
    }
    for (key, object) in all() {
        let Some(fate) = fates.get_mut(key) else { continue };
        if let Some(why) = &object.standing.unread {
            fate.note(Outcome::LastGoodKept, why);
        }
        // Those that cannot be understood refuse whatever they select, whatever else is said.
        if let Err(Invalid { why, .. }) = &object.spec {
            fate.note(Outcome::NotUnderstood, why);
            let refusing = refuse(place, key, object, pods, fate);
            if key.0 == place.namespace {
                policies.push(refusing);
            }
        }
    }
    let levels = Levels::new(place);
    for (key, _, spec) in levels.of_workloads().filter(|(key, ..)| key.0 == place.namespace) {
        if let Some(rules) = port_rules(spec, levels.base(Some((key, spec))).0) {
            policies.push(deny(converted(key), rules));
        }
    }
    // Those that select a pod for which another is older.
    let mut passed_over: BTreeMap<&Key, &Key> = BTreeMap::new();
    for pod in enforcing(pods) {
        let mut selecting = levels.of_workload(&pod.labels);
        let own = selecting.next();
        if let Some((winner, _)) = own {
            passed_over.extend(selecting.map(|(key, _)| (key, winner)));
        }
        let (base, by) = levels.base(own);
        match own {
            Some((key, spec)) if port_rules(spec, base).is_some() => pod.workload.policies.push(converted(key)),
            _ if base == Base::Strict => pod.workload.policies.push(strict.clone()),
            _ => {}
        }
        // It counts for whoever has a say.
        let own = own.map(|(key, _)| key);
        for key in own.into_iter().chain(by.filter(|by| own != Some(*by))) {
            if let Some(fate) = fates.get_mut(key) {
                fate.reach.add(pod);
            }
        }
    }
    levels.report_shadowed(&passed_over, &mut fates);
    for (key, fate) in fates {
        if key.0 == place.namespace {
            let spec = objects.peer_authentications.get(key).and_then(|object| object.spec.as_ref().ok());
            findings.conclude(place, fate, spec.map(means).unwrap_or_default());
        } else {
            findings.reached(fate);
        }
    }
    policies
}

/// What it does, in words.
fn means(spec: &PeerSpec) -> String {
    let mode = match Base::of_spec(spec) {
        Some(Base::Strict) => "callers without an identity of the mesh are refused",
        Some(Base::Permissive) => "callers without an identity of the mesh are let in",
        None => "the mode of the next wider PeerAuthentication holds",
    };
    let ports = spec.port_level_mtls.iter().filter(|(_, mtls)| Base::of(mtls.mode).is_some()).count();
    match ports {
        0 => mode.to_owned(),
        1 => format!("{mode}, and as its entry says on 1 port"),
        more => format!("{mode}, and as their entries say on {more} ports"),
    }
}

/// The mode for all ports that are not named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Permissive,
    Strict,
}

impl Base {
    /// `None`: as the next wider level says. DISABLE is PERMISSIVE here.
    fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Unset => None,
            Mode::Disable | Mode::Permissive => Some(Self::Permissive),
            Mode::Strict => Some(Self::Strict),
        }
    }

    fn of_spec(spec: &PeerSpec) -> Option<Self> {
        Self::of(spec.mtls.unwrap_or_default().mode)
    }
}

/// The usable PeerAuthentications of a namespace and of the root namespace, the deciding one of each level first.
struct Levels<'a> {
    place: Place<'a>,
    all: Vec<(&'a Key, &'a PeerAuthentication, &'a PeerSpec)>,
}

impl<'a> Levels<'a> {
    fn new(place: &Place<'a>) -> Self {
        let objects = &place.objects.peer_authentications;
        let usable = place.own(objects).chain(place.of_root(objects));
        let mut all: Vec<_> =
            usable.filter_map(|(key, object)| Some((key, object, object.spec.as_ref().ok()?))).collect();
        // The oldest wins; those without a time (in files) come after those with one, by name.
        all.sort_by_key(|(key, object, _)| {
            let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, *key)
        });
        Self { place: *place, all }
    }

    fn of_workloads(&self) -> impl Iterator<Item = (&'a Key, &'a PeerAuthentication, &'a PeerSpec)> {
        self.all.iter().copied().filter(|(_, object, _)| object.selector().is_some())
    }

    /// The one that decides for a whole namespace (in the root namespace: for the mesh).
    fn of_namespace(&self, namespace: &str) -> Option<(&'a Key, &'a PeerSpec)> {
        let wide = self.all.iter().find(|(key, object, _)| key.0 == namespace && object.selector().is_none());
        wide.map(|(key, _, spec)| (*key, *spec))
    }

    /// Those that select a workload by its labels, the deciding one first; one of the root namespace selects there only.
    fn of_workload(&self, labels: &super::selector::Labels) -> impl Iterator<Item = (&'a Key, &'a PeerSpec)> {
        let selecting = self.of_workloads().filter(|(key, object, _)| {
            key.0 == self.place.namespace && object.selector().is_some_and(|selector| selector.selects(Some(labels)))
        });
        selecting.map(|(key, _, spec)| (key, spec))
    }

    /// The mode, and whose it is.
    fn base(&self, own: Option<(&'a Key, &'a PeerSpec)>) -> (Base, Option<&'a Key>) {
        let says = |(key, spec): (&'a Key, &'a PeerSpec)| Base::of_spec(spec).map(|base| (base, Some(key)));
        own.and_then(says)
            .or_else(|| self.of_namespace(self.place.namespace).and_then(says))
            .or_else(|| self.of_namespace(&self.place.config.root_namespace).and_then(says))
            .unwrap_or(match self.place.config.default_mode {
                DefaultMode::Permissive => (Base::Permissive, None),
                DefaultMode::Strict => (Base::Strict, None),
            })
    }

    /// Two for one namespace, or for one pod: only one decides, and whoever wrote the other should know.
    fn report_shadowed(&self, passed_over: &BTreeMap<&'a Key, &Key>, fates: &mut BTreeMap<&'a Key, Fate>) {
        let wide: Vec<_> = self.all.iter().filter(|(_, object, _)| object.selector().is_none()).collect();
        for (at, (key, _, _)) in wide.iter().enumerate() {
            if let Some((winner, _, _)) = wide[..at].iter().find(|(other, _, _)| other.0 == key.0)
                && let Some(fate) = fates.get_mut(key)
            {
                fate.note(Outcome::NoEffect, format!("{} is older and decides for the namespace", winner.1));
            }
        }
        for (key, winner) in passed_over {
            if let Some(fate) = fates.get_mut(key).filter(|fate| fate.reach.is_empty()) {
                fate.note(Outcome::NoEffect, format!("{} is older and decides for the pods that it selects", winner.1));
            }
        }
    }
}

/// What the ports that differ from the base ask for; `None` if none does.
fn port_rules(spec: &PeerSpec, base: Base) -> Option<Vec<Rule>> {
    let differing: Vec<u16> = spec
        .port_level_mtls
        .iter()
        .filter(|(_, Mtls { mode })| Base::of(*mode).is_some_and(|mode| mode != base))
        .map(|(port, _)| *port)
        .collect();
    if differing.is_empty() {
        return None;
    }
    Some(match base {
        // Refused without identity on all ports but these.
        Base::Strict => {
            let except = |port: u16| one(Match { not_destination_ports: vec![port], ..Match::default() });
            vec![Rule { clauses: std::iter::once(no_identity()).chain(differing.into_iter().map(except)).collect() }]
        }
        // Refused without identity on these ports.
        Base::Permissive => {
            let on = |port: u16| one(Match { destination_ports: vec![port], ..Match::default() });
            differing.into_iter().map(|port| Rule { clauses: vec![no_identity(), on(port)] }).collect()
        }
    })
}

/// One of the root namespace with a selector refuses there only.
fn refuse(place: &Place<'_>, key: &Key, object: &PeerAuthentication, pods: &mut Pods, fate: &mut Fate) -> Policy {
    let selector = object.selector();
    let scope = match selector {
        None if key.0 == place.config.root_namespace => Scope::Global,
        None => Scope::Namespace,
        Some(_) => Scope::Selector,
    };
    fate.everywhere = scope == Scope::Global;
    for pod in enforcing(pods).filter(|_| scope == Scope::Global || key.0 == place.namespace) {
        if selector.is_none_or(|selector| selector.selects(Some(&pod.labels))) {
            fate.reach.add(pod);
            if scope == Scope::Selector {
                pod.workload.policies.push(converted(key));
            }
        }
    }
    Policy::invalid(converted(key), scope)
}

fn converted((namespace, name): &Key) -> PolicyKey {
    PolicyKey { namespace: namespace.clone(), name: format!("{CONVERTED}{name}") }
}

fn deny(key: PolicyKey, rules: Vec<Rule>) -> Policy {
    Policy { key, scope: Scope::Selector, action: Action::Deny, rules, dry_run: false, invalid: false }
}

/// True for a caller without an identity.
fn no_identity() -> Clause {
    one(Match { not_principals: vec![StringMatch::Presence], ..Match::default() })
}

fn one(part: Match) -> Clause {
    Clause { matches: vec![part] }
}
