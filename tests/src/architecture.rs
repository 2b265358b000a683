//! The workspace is as ARCHITECTURE.md says: crate edges, outside crates, direction of modules, where `unsafe` may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Package → its direct dependencies of all kinds, from cargo itself.
fn packages() -> BTreeMap<String, BTreeSet<String>> {
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

#[test]
fn every_crate_edge_is_in_the_table() {
    let (table, packages) = (table(), packages());
    assert_eq!(
        table.keys().collect::<Vec<_>>(),
        packages.keys().collect::<Vec<_>>(),
        "crates of the table and of the workspace"
    );
    for (name, dependencies) in &packages {
        let used: BTreeSet<String> = dependencies.iter().filter(|name| packages.contains_key(*name)).cloned().collect();
        let extra: Vec<_> = used.difference(&table[name].ours).collect();
        assert!(extra.is_empty(), "{name} uses {extra:?} of ours, which the table does not allow");
    }
}

#[test]
fn an_outside_crate_is_used_only_where_the_table_names_it() {
    let (table, packages) = (table(), packages());
    for (name, dependencies) in &packages {
        for outside in dependencies.iter().filter(|outside| !packages.contains_key(*outside)) {
            let free = if name == "mesh-model" { FREE_FOR_MODEL } else { FREE };
            assert!(
                free.contains(&outside.as_str()) || table[name].outside.contains(outside),
                "{name} uses {outside}, which the table does not name in its row"
            );
        }
    }
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

#[test]
fn unsafe_stands_only_in_mesh_net_and_each_block_says_why_it_is_safe() {
    let home = workspace().join("mesh-net");
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains(concat!("uns", "afe {")) && !code.contains(concat!("uns", "afe fn")) {
                continue;
            }
            assert!(path.starts_with(&home), "{}:{}: outside mesh-net", path.display(), number + 1);
            let before = &lines[number.saturating_sub(8)..number];
            assert!(
                before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")),
                "{}:{}: no SAFETY: above",
                path.display(),
                number + 1
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
    let source = workspace().join("node-proxy/src");
    for path in sources().into_iter().filter(|path| path.starts_with(&source)) {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let forbidden: &[&str] = if path.starts_with(source.join("keeper")) {
            &["crate::worker"]
        } else if path.starts_with(source.join("worker")) {
            &["crate::keeper"]
        } else {
            &[]
        };
        for word in forbidden {
            assert!(!text.contains(word), "{} imports {word}", path.display());
        }
    }
}

/// The stages a byte passes, in order. A stage may look back at what it is given and must not look ahead: what comes later cannot
/// decide what came before. `inbound`, `outbound` and `start` put the stages together and are not stages.
const STAGES: &[&str] = &["accept", "identify", "route", "authorize", "connect", "copy"];

#[test]
fn a_stage_of_the_data_path_does_not_look_ahead() {
    let worker = workspace().join("node-proxy/src/worker");
    for (position, stage) in STAGES.iter().enumerate() {
        for path in sources()
            .into_iter()
            .filter(|path| *path == worker.join(format!("{stage}.rs")) || path.starts_with(worker.join(stage)))
        {
            let text = std::fs::read_to_string(&path).expect("a source file");
            // Tests may put stages together.
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            if path.ends_with("tests.rs") {
                continue;
            }
            for later in &STAGES[position + 1..] {
                for import in [format!("super::{later}::"), format!("worker::{later}::")] {
                    assert!(!text.contains(&import), "{} looks ahead at {later}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_worker_lists_its_stages_in_the_order_of_a_byte() {
    let list = std::fs::read_to_string(workspace().join("node-proxy/src/worker/mod.rs")).expect("worker/mod.rs");
    let place = |stage: &str| list.find(&format!("mod {stage};")).unwrap_or_else(|| panic!("no module {stage}"));
    assert!(STAGES.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{STAGES:?} are listed in another order");
}

/// What a page names as a test, `module::`, `module::name` or `module::first_words_…`: module and beginning of the name.
fn named_tests(page: &str) -> BTreeSet<(String, String)> {
    let ticked = page.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && !word.contains(' '));
    let pair = |word: &str| {
        let (module, name) = word.rsplit_once("::")?;
        let module = module.rsplit("::").find(|part| *part != "tests")?;
        Some((module.to_owned(), name.trim_end_matches('…').to_owned()))
    };
    ticked.filter_map(pair).collect()
}

#[test]
fn the_security_page_names_tests_that_are_there_and_one_for_each_thing_that_is_promised() {
    let page = std::fs::read_to_string(workspace().join("docs/security.md")).expect("docs/security.md");
    let texts: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).expect("a source file")))
        .collect();
    let is_module = |path: &Path, module: &str| {
        path.file_stem().is_some_and(|stem| stem == module) || path.iter().any(|part| part == module)
    };
    let named = named_tests(&page);
    assert!(named.len() > 25, "{named:?}");
    for (module, name) in named {
        let found = texts.iter().any(|(path, text)| {
            is_module(path, &module) && text.contains("test]") && text.contains(&format!("fn {name}"))
        });
        assert!(found, "docs/security.md names {module}::{name}, which is not there");
    }
    // Alone names are whole names of tests.
    for name in page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 4 && !word.contains("::"))
    {
        assert!(texts.iter().any(|(_, text)| text.contains(&format!("fn {name}("))), "{name} is not there");
    }
    let promises = page.split("\n## How").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("section How");
    for promise in promises.split("\n- ").skip(1) {
        let has_name = promise.split('`').any(|word| word.contains("::") || word.matches('_').count() > 4);
        assert!(has_name, "no test is named for: {promise}");
    }
}
