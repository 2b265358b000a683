//! The workspace is as ARCHITECTURE.md says: crate edges, outside crates, direction of modules, no new circle of files, where `unsafe` may
//! be. Each question is asked of a planted violation as well.

mod circles;
mod pages;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use self::source::{Name, Source};

/// Crates that anyone may use: the runtime, serialisation, errors, logs, and small ones without a role of their own.
const FREE: &[&str] = &[
    "tokio",
    "serde",
    "serde_json",
    "tracing",
    "thiserror",
    "anyhow",
    "clap",
    "bytes",
    "rand",
    "futures-util",
    "tempfile",
    "proptest",
];
/// The pure crate takes only these of the free ones.
const FREE_FOR_MODEL: &[&str] = &["thiserror", "proptest"];

struct Row {
    ours: BTreeSet<String>,
    outside: BTreeSet<String>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a direct child of the workspace").to_owned()
}

/// The crate table of ARCHITECTURE.md.
fn table() -> BTreeMap<String, Row> {
    let page = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let section = page.split("\n## Crates").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("section Crates");
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "—").map(str::to_owned).collect()
    };
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, ours, outside] = cells[..] else { panic!("row {line:?} has not four cells") };
        rows.insert(name.trim_matches('`').to_owned(), Row { ours: names(ours), outside: names(outside) });
    }
    rows
}

/// Package → its direct dependencies of all kinds.
type Packages = BTreeMap<String, BTreeSet<String>>;

/// From cargo itself.
fn packages() -> Packages {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(workspace().join("Cargo.toml"))
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON of cargo metadata");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            (
                text(&package["name"]),
                list(&package["dependencies"]).iter().map(|dependency| text(&dependency["name"])).collect(),
            )
        })
        .collect()
}

/// Each dependency that the table does not name in the row of who has it.
fn not_in_the_table(table: &BTreeMap<String, Row>, packages: &Packages) -> Vec<String> {
    let mut found = Vec::new();
    for (name, dependencies) in packages {
        let Some(row) = table.get(name) else {
            found.push(format!("{name} has no row"));
            continue;
        };
        let free = if name == "mesh-model" { FREE_FOR_MODEL } else { FREE };
        for other in dependencies {
            let allowed = match packages.contains_key(other) {
                true => row.ours.contains(other),
                false => row.outside.contains(other) || free.contains(&other.as_str()),
            };
            if !allowed {
                found.push(format!("{name} uses {other}"));
            }
        }
    }
    found
}

#[test]
fn every_crate_edge_and_every_outside_crate_is_in_the_table() {
    let (table, packages) = (table(), packages());
    assert_eq!(not_in_the_table(&table, &packages), Vec::<String>::new());
    let gone: Vec<_> = table.keys().filter(|name| !packages.contains_key(*name)).collect();
    assert!(gone.is_empty(), "rows of crates that are not there: {gone:?}");
}

#[test]
fn an_edge_that_is_not_in_the_table_is_seen() {
    let plant = |who: &str, what: &str| {
        let mut packages = packages();
        packages.entry(who.to_owned()).or_default().insert(what.to_owned());
        not_in_the_table(&table(), &packages)
    };
    assert_eq!(plant("mesh-model", "mesh-net"), ["mesh-model uses mesh-net"]);
    assert_eq!(plant("pod-watcher", "node-proxy"), ["pod-watcher uses node-proxy"]);
    assert_eq!(plant("mesh-model", "tokio"), ["mesh-model uses tokio"]);
    assert_eq!(plant("cni-plugin", "h2"), ["cni-plugin uses h2"]);
    assert_eq!(plant("mesh-new", "serde"), ["mesh-new has no row"]);
}

/// Every Rust source file of the workspace's crates.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a source directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for name in packages().keys() {
        walk(&workspace().join(name), &mut found);
    }
    found
}

fn read(path: &Path, module: &[&str]) -> Source {
    let text = std::fs::read_to_string(path).expect("a source file");
    Source::read(&text, module).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What this crate's files say, by module. Files of tests are left out.
fn modules(package: &str) -> BTreeMap<Name, Source> {
    let root = workspace().join(package).join("src");
    let mut found = BTreeMap::new();
    for path in sources().into_iter().filter(|path| path.starts_with(&root)) {
        let below = path.strip_prefix(&root).expect("below the root").with_extension("");
        let mut module: Name = below.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        if module.iter().any(|word| ["tests", "testing"].contains(&word.as_str())) {
            continue;
        }
        if module.last().is_some_and(|last| ["mod", "main", "lib"].contains(&last.as_str())) {
            module.pop();
        }
        let words: Vec<&str> = module.iter().map(String::as_str).collect();
        found.insert(module.clone(), read(&path, &words));
    }
    found
}

#[test]
fn unsafe_stands_only_in_mesh_net_and_each_block_says_why_it_is_safe() {
    let home = workspace().join("mesh-net");
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let lines: Vec<&str> = text.lines().collect();
        for line in read(&path, &[]).unsafe_lines {
            assert!(path.starts_with(&home), "{}:{line}: outside mesh-net", path.display());
            let before = &lines[line.saturating_sub(9)..line];
            assert!(
                before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")),
                "{}:{line}: no SAFETY: above",
                path.display()
            );
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn keeper_and_worker_do_not_import_each_other() {
    for (module, source) in modules("node-proxy") {
        let foreign = match module.first().map(String::as_str) {
            Some("keeper") => "worker",
            Some("worker") => "keeper",
            _ => continue,
        };
        assert!(!source.names_any_of(&[foreign]), "{} names {foreign}", module.join("::"));
    }
}

/// The stages a byte passes, in order. A stage may look back at what it is given and must not look ahead: what comes later cannot
/// decide what came before. `inbound`, `outbound` and `start` put the stages together and are not stages.
const STAGES: &[&str] = &["accept", "identify", "route", "authorize", "connect", "copy"];

/// The later stages that this one, a module of the worker, names.
fn ahead(module: &[String], source: &Source) -> Vec<&'static str> {
    let [worker, stage, ..] = module else { return Vec::new() };
    let Some(position) = STAGES.iter().position(|known| worker == "worker" && stage == known) else {
        return Vec::new();
    };
    STAGES[position + 1..].iter().copied().filter(|later| source.names_any_of(&["worker", later])).collect()
}

#[test]
fn a_stage_of_the_data_path_does_not_look_ahead() {
    let modules = modules("node-proxy");
    for stage in STAGES {
        assert!(modules.contains_key(&["worker".to_owned(), (*stage).to_owned()][..]), "no stage {stage}");
    }
    for (module, source) in modules {
        assert_eq!(ahead(&module, &source), Vec::<&str>::new(), "{} looks ahead", module.join("::"));
    }
}

#[test]
fn a_stage_that_looks_ahead_is_seen_also_below_a_stage() {
    let of = |text: &str, module: &[&str]| {
        let source = Source::read(text, module).expect("Rust");
        ahead(&module.iter().map(|word| (*word).to_owned()).collect::<Name>(), &source)
    };
    assert_eq!(of("use super::{copy, identify};", &["worker", "route"]), ["copy"]);
    assert_eq!(of("use super::super::connect::open;", &["worker", "route", "endpoints"]), ["connect"]);
    assert_eq!(of("use super::{accept, identify};", &["worker", "route"]), [""; 0]);
}

#[test]
fn the_worker_lists_its_stages_in_the_order_of_a_byte() {
    let list = std::fs::read_to_string(workspace().join("node-proxy/src/worker/mod.rs")).expect("worker/mod.rs");
    let place = |stage: &str| list.find(&format!("mod {stage};")).unwrap_or_else(|| panic!("no module {stage}"));
    assert!(STAGES.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{STAGES:?} are listed in another order");
}
