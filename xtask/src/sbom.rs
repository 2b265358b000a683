//! What is in an image, as CycloneDX 1.6: every crate that is linked into its binaries with version, licence and checksum, and what is
//! linked besides, since the binaries are static: C libraries that crates bring, Rust's own library, glibc and libgcc of the building
//! machine. The same bytes for the same inputs: neither time nor a random serial number.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::cargo;

/// Image, and the packages whose binaries it holds.
const IMAGES: [(&str, &[&str]); 3] = [
    ("control-plane", &["control-plane"]),
    ("node-proxy", &["node-proxy"]),
    ("pod-watcher", &["pod-watcher", "cni-plugin"]),
];

/// Name and version of a crate.
type Crate = (String, String);
/// Who uses whom.
type Edges = BTreeMap<Crate, BTreeSet<Crate>>;

/// Writes NAME.cdx.json for each image into a directory.
pub fn write(to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for (image, packages) in IMAGES {
        let file = to.join(format!("{image}.cdx.json"));
        let text = serde_json::to_string_pretty(&of(image, packages)?)?;
        std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn of(image: &str, packages: &[&str]) -> anyhow::Result<Value> {
    let (edges, facts, base) = (edges()?, Facts::read()?, base()?);
    let version = |name: &str| {
        let found = edges.keys().find(|(known, _)| known == name).context("a package that cargo does not know");
        found.cloned().with_context(|| name.to_owned())
    };
    let roots = packages.iter().map(|name| version(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut components = base.clone();
    let container = format!("image:{image}");
    let mut depends = vec![json!({"ref": container, "dependsOn": roots.iter().map(refer).collect::<Vec<_>>()})];
    let of_base: Vec<String> = base.iter().filter_map(|one| one["bom-ref"].as_str().map(str::to_owned)).collect();
    for one in linked(&edges, &roots) {
        let is_binary = roots.contains(&one);
        let brought = facts.brings(&one)?;
        let mut on: Vec<String> = edges.get(&one).into_iter().flatten().map(refer).collect();
        on.extend(brought.iter().filter_map(|library| library["bom-ref"].as_str().map(str::to_owned)));
        if is_binary {
            on.extend(of_base.iter().cloned());
        }
        components.push(facts.component(&one, if is_binary { "application" } else { "library" })?);
        components.extend(brought);
        depends.push(json!({"ref": refer(&one), "dependsOn": on}));
    }
    let of = json!({"type": "container", "bom-ref": container, "name": image, "version": roots[0].1});
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": of, "tools": {"components": [{"type": "application", "name": "cargo xtask image"}]}},
        "components": components, "dependencies": depends,
    }))
}

fn refer((name, version): &Crate) -> String {
    format!("crate:{name}@{version}")
}

/// Who uses whom at run time on our target, as the build unifies features: neither build scripts' crates nor procedural macros, which are
/// in no binary.
fn edges() -> anyhow::Result<Edges> {
    let mut command = cargo::cargo(["tree", "--workspace", "--locked", "--edges", "normal,no-proc-macro"]);
    command.args(["--target", cargo::TARGET, "--prefix", "depth", "--format", " {p}"]);
    Ok(tree(&said(&mut command)?))
}

/// Of lines `DEPTH NAME vVERSION …`. A crate's own users are listed once; later it stands alone.
fn tree(text: &str) -> Edges {
    let mut edges = Edges::new();
    let mut path: Vec<Crate> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let depth = words.next().and_then(|word| word.parse::<usize>().ok());
        let (Some(depth), Some(name), Some(version)) = (depth, words.next(), words.next()) else { continue };
        let one: Crate = (name.to_owned(), version.trim_start_matches('v').to_owned());
        path.truncate(depth);
        if let Some(user) = path.last() {
            edges.entry(user.clone()).or_default().insert(one.clone());
        }
        edges.entry(one.clone()).or_default();
        path.push(one);
    }
    edges
}

/// What these need, themselves included.
fn linked(edges: &Edges, roots: &[Crate]) -> BTreeSet<Crate> {
    let (mut found, mut next) = (BTreeSet::new(), roots.to_vec());
    while let Some(one) = next.pop() {
        if found.insert(one.clone()) {
            next.extend(edges.get(&one).into_iter().flatten().cloned());
        }
    }
    found
}

/// What cargo and the lock file know of crates.
struct Facts {
    packages: BTreeMap<Crate, Value>,
    /// SHA-256 of what was downloaded.
    checksums: BTreeMap<Crate, String>,
}

impl Facts {
    fn read() -> anyhow::Result<Self> {
        let mut command =
            cargo::cargo(["metadata", "--format-version=1", "--locked", "--filter-platform", cargo::TARGET]);
        let metadata: Value = serde_json::from_str(&said(&mut command)?).context("cargo metadata")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?.iter();
        let packages = packages.map(|one| ((text(&one["name"]), text(&one["version"])), one.clone())).collect();
        let lock = std::fs::read_to_string(cargo::workspace().join("Cargo.lock")).context("read Cargo.lock")?;
        let checksums = lock.split("[[package]]").filter_map(|package| {
            let value = |name: &str| {
                let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
                Some(line.trim_matches('"').to_owned())
            };
            Some(((value("name")?, value("version")?), value("checksum")?))
        });
        Ok(Self { packages, checksums: checksums.collect() })
    }

    fn package(&self, one: &Crate) -> anyhow::Result<&Value> {
        self.packages.get(one).with_context(|| format!("cargo metadata does not know {}", refer(one)))
    }

    fn component(&self, one: &Crate, kind: &str) -> anyhow::Result<Value> {
        let (name, version) = one;
        let mut component =
            json!({"type": kind, "bom-ref": refer(one), "name": name, "version": version, "scope": "required"});
        let licence = self.package(one)?["license"].as_str();
        let licence = licence.with_context(|| format!("{} names no licence", refer(one)))?;
        // As crates wrote it before SPDX's expressions.
        component["licenses"] =
            json!([{"expression": licence.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")}]);
        // Ours are in no registry.
        if let Some(checksum) = self.checksums.get(one) {
            component["purl"] = format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")).into();
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        Ok(component)
    }

    /// The C library that a crate compiles and links. One that nobody has named here is an error: it would be missing.
    fn brings(&self, one: &Crate) -> anyhow::Result<Vec<Value>> {
        let package = self.package(one)?;
        if package["links"].is_null() {
            return Ok(Vec::new());
        }
        let library = |name: &str, version: &str, licence: &str, cpe: &str| {
            let mut library = json!({"type": "library", "bom-ref": format!("c:{name}@{version}"), "name": name, "version": version,
                "scope": "required", "licenses": [{"expression": licence}]});
            library["description"] = format!("compiled from the sources in crate {}", one.0).into();
            library["cpe"] = format!("cpe:2.3:a:{cpe}:{version}:*:*:*:*:*:*:*").into();
            library
        };
        let licence = package["license"].as_str().unwrap_or_default();
        Ok(match one.0.as_str() {
            "aws-lc-sys" => {
                let manifest = package["manifest_path"].as_str().context("a manifest")?;
                let header = Path::new(manifest).with_file_name("aws-lc/include/openssl/base.h");
                let text = std::fs::read_to_string(&header).with_context(|| format!("read {}", header.display()))?;
                let version = text.lines().find_map(|line| {
                    line.strip_prefix("#define AWSLC_VERSION_NUMBER_STRING ").map(|rest| rest.trim().trim_matches('"'))
                });
                vec![library("aws-lc", version.context("AWS-LC's header names no version")?, licence, "amazon:aws-lc")]
            }
            "tikv-jemalloc-sys" => {
                let version = one.1.split_once('+').map(|(_, of)| of.split('-').next().unwrap_or(of));
                let version = version.context("tikv-jemalloc-sys names jemalloc's version behind a +")?;
                vec![library("jemalloc", version, "BSD-2-Clause", "jemalloc:jemalloc")]
            }
            // These link nothing themselves; they only say that there may be one of them.
            "aws-lc-rs" | "k8s-openapi" => Vec::new(),
            other => anyhow::bail!("crate {other} links a C library that xtask/src/sbom.rs does not name"),
        })
    }
}

/// What every static binary has besides crates.
fn base() -> anyhow::Result<Vec<Value>> {
    let rustc = said(Command::new("rustc").arg("--version").current_dir(cargo::workspace()))?;
    let rustc = rustc.split_whitespace().nth(1).context("rustc names no version")?;
    Ok(vec![
        json!({"type": "library", "bom-ref": format!("rust-std@{rustc}"), "name": "rust-std", "version": rustc, "scope": "required",
            "licenses": [{"expression": "MIT OR Apache-2.0"}], "description": "Rust's standard library, with the crates in it"}),
        of_machine("glibc", "libc.a", "LGPL-2.1-or-later", &["getconf", "GNU_LIBC_VERSION"])?,
        of_machine("libgcc", "libgcc_eh.a", "GPL-3.0-or-later WITH GCC-exception-3.1", &["cc", "-dumpfullversion"])?,
    ])
}

/// A library of the building machine: by the Debian package that its archive is of, else by what it says of itself.
fn of_machine(name: &str, archive: &str, licence: &str, otherwise: &[&str]) -> anyhow::Result<Value> {
    let mut component = json!({"type": "library", "name": name, "scope": "required", "licenses": [{"expression": licence}],
        "description": "linked statically from the machine that built it"});
    let version = match debian(archive) {
        Ok((package, version)) => {
            let encoded = version.replace('+', "%2B").replace(':', "%3A");
            component["purl"] = format!("pkg:deb/debian/{package}@{encoded}?arch=amd64").into();
            version
        }
        // Not a Debian.
        Err(_) => {
            let (program, args) = otherwise.split_first().context("a program")?;
            let own = said(Command::new(program).args(args))?;
            own.split_whitespace().last().context("no version")?.to_owned()
        }
    };
    component["bom-ref"] = format!("c:{name}@{version}").into();
    component["version"] = version.into();
    Ok(component)
}

/// Debian's package of a static library, and its version.
fn debian(archive: &str) -> anyhow::Result<(String, String)> {
    let path = said(Command::new("cc").arg(format!("-print-file-name={archive}")))?;
    let path = std::fs::canonicalize(path.trim()).with_context(|| archive.to_owned())?;
    let owner = said(Command::new("dpkg-query").arg("--search").arg(path))?;
    let package = owner.split(':').next().context("no package")?.to_owned();
    let version = said(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", &package]))?;
    Ok((package, version))
}

fn said(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} says what is no text"))
}

#[cfg(test)]
#[path = "sbom_tests.rs"]
mod tests;
