//! Files that need each other cannot be read one after the other.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Name, Source};
use super::{modules, packages};

/// Circles that are still there, by crate. None may be added; one that is gone is taken out of the list.
const KNOWN: &[(&str, &str)] = &[
    (
        "lab",
        "apps::server binaries cgroup cni config handle init interrupt kubelet lab mesh node objects pid pod proc spawn state",
    ),
    ("lab", "cli story verbs"),
    ("mesh-api", "manifests::kind manifests::security manifests::trim"),
    ("node-proxy", "worker::accept worker::inbound worker::lost worker::outbound worker::threads"),
    ("node-proxy", "worker::live worker::pods"),
    ("node-proxy", "worker::mint worker::orphans"),
    ("pod-watcher", "cni keepers node watch"),
    ("pod-watcher", "enrol::event enrol::pod"),
    ("tests", "transparency::ends transparency::play transparency::rows transparency::sockets transparency::stage"),
    ("xtask", "coredns kubernetes tools"),
];

/// Groups of modules each of which leads to each other. What a module has of the one that it is in, or of those in it, is its own affair.
fn circles(modules: &BTreeMap<Name, Source>) -> Vec<Vec<String>> {
    let home = |name: &Name| modules.keys().filter(|module| name.starts_with(module)).max_by_key(|module| module.len());
    let leads = |from: &Name| -> BTreeSet<&Name> {
        let named = modules[from].names.iter().filter_map(home);
        named.filter(|to| !from.starts_with(to) && !to.starts_with(from)).collect()
    };
    let edges: BTreeMap<&Name, BTreeSet<&Name>> = modules.keys().map(|module| (module, leads(module))).collect();
    let reached = |from: &Name| {
        let mut found = BTreeSet::new();
        let mut next: Vec<&Name> = edges[from].iter().copied().collect();
        while let Some(module) = next.pop() {
            if found.insert(module) {
                next.extend(&edges[module]);
            }
        }
        found
    };
    let reached: BTreeMap<&Name, BTreeSet<&Name>> = modules.keys().map(|module| (module, reached(module))).collect();
    let circle = |of: &Name| -> Vec<String> {
        let back = reached[of].iter().filter(|other| reached[*other].contains(of));
        back.map(|module| module.join("::")).collect()
    };
    let circles: BTreeSet<Vec<String>> = modules.keys().map(circle).filter(|circle| circle.len() > 1).collect();
    circles.into_iter().collect()
}

#[test]
fn no_circle_of_files_is_new() {
    for package in packages().keys() {
        let known = KNOWN.iter().filter(|(of, _)| of == package);
        let known: Vec<Vec<&str>> = known.map(|(_, circle)| circle.split(' ').collect()).collect();
        assert_eq!(circles(&modules(package)), known, "circles of {package}");
    }
}

#[test]
fn a_circle_is_seen_and_a_chain_or_a_child_is_none() {
    let of = |files: &[(&str, &str)]| {
        let read = |(module, text): &(&str, &str)| {
            let words: Vec<&str> = module.split("::").collect();
            (words.iter().map(|word| (*word).to_owned()).collect(), Source::read(text, &words).expect("Rust"))
        };
        circles(&files.iter().map(read).collect())
    };
    assert_eq!(
        of(&[("a", "use crate::b::B;"), ("b", "use super::c;"), ("c", "fn f() { crate::a::g() }")]),
        [["a", "b", "c"]]
    );
    assert_eq!(of(&[("a", "use crate::b::d::D;"), ("b", ""), ("b::d", "use crate::a;")]), [["a", "b::d"]]);
    assert!(of(&[("a", "use crate::b::B;"), ("b", "use super::c;"), ("c", "")]).is_empty());
    assert!(of(&[("a", "use self::b::B;"), ("a::b", "use super::A;")]).is_empty());
    assert!(of(&[("a", "use crate::b::B;"), ("b", "#[cfg(test)] use super::a;")]).is_empty());
}
