//! PostgreSQL for the demo: Debian's own packages, unpacked beside each other, and of all that only what a server and `psql` read.
//!
//! Nothing is installed on this machine. What is kept is a tree to be put into an image (`cluster/src/demo.rs`), under the packages'
//! version: a security update is another tree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{cache, cargo, packages, phase};

/// Debian's name for its default version, which depends on it.
const DEFAULT: &str = "postgresql";
/// A plugin of the server that is not taken along needs it, and it is larger than everything else.
const NOT: [&str; 1] = ["libllvm"];
/// Run in pods, below the version's own `bin`.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "psql", "pg_isready"];
/// Opened by name when a database is made.
const MODULES: [&str; 2] = ["plpgsql.so", "dict_snowball.so"];
/// Where the loader of the same C library looks, in what was unpacked.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// A directory that is the root of a file system with PostgreSQL in it; its version's number is in the path (`usr/lib/postgresql/15`).
pub fn root() -> anyhow::Result<PathBuf> {
    if apt(&["policy", DEFAULT])?.is_empty() {
        packages::update()?;
    }
    let numbered =
        |name: &&String| name.strip_prefix("postgresql-").is_some_and(|number| number.parse::<u32>().is_ok());
    let server = depends(DEFAULT)?.iter().find(numbered).context("Debian's postgresql names no version")?.clone();
    let number = server.trim_start_matches("postgresql-").to_owned();
    let policy = apt(&["policy", &server])?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")).context("no candidate")?;
    let place = cache::tool("postgresql", version, |draft| {
        phase::run(&format!("unpack {server} {version} (Debian packages, 30 MB)"), || unpack(draft, &number))
    })?;
    Ok(place.join("root"))
}

fn unpack(draft: &Path, number: &str) -> anyhow::Result<()> {
    let (archives, unpacked) = (draft.join("archives"), draft.join("unpacked"));
    std::fs::create_dir(&archives)?;
    let wanted = [format!("postgresql-{number}"), format!("postgresql-client-{number}")];
    let names = with_libraries(&wanted)?;
    let download = || {
        cargo::run(
            Command::new("apt-get")
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
                .args(&names)
                .current_dir(&archives),
        )
    };
    // An old package list names versions that are gone.
    download().or_else(|_| packages::update().and_then(|()| download()))?;
    for archive in std::fs::read_dir(&archives)? {
        cargo::run(Command::new("dpkg-deb").arg("--extract").arg(archive?.path()).arg(&unpacked))?;
    }
    pick(&unpacked, &draft.join("root"), number)?;
    std::fs::remove_dir_all(archives)?;
    Ok(std::fs::remove_dir_all(unpacked)?)
}

/// These packages and the libraries they depend on, in turn. What else they depend on is how Debian runs a server.
fn with_libraries(wanted: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let is_library =
        |name: &str| (name.starts_with("lib") || name == "zlib1g") && !NOT.iter().any(|not| name.starts_with(not));
    let (mut names, mut next) = (BTreeSet::new(), wanted.to_vec());
    while let Some(name) = next.pop() {
        if names.insert(name.clone()) {
            next.extend(depends(&name)?.into_iter().filter(|name| is_library(name)));
        }
    }
    Ok(names)
}

/// What a package directly depends on; of alternatives the one that Debian names.
fn depends(package: &str) -> anyhow::Result<Vec<String>> {
    let said = apt(&["depends", "--important", package])?;
    let names = said.lines().filter_map(|line| line.trim_start().strip_prefix("Depends: "));
    Ok(names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect())
}

/// Copies programs, the modules and files they open, and the libraries that the loader finds for them.
fn pick(from: &Path, to: &Path, number: &str) -> anyhow::Result<()> {
    let of_version = format!("usr/lib/postgresql/{number}");
    let programs = PROGRAMS.map(|name| format!("{of_version}/bin/{name}"));
    let modules = MODULES.map(|name| format!("{of_version}/lib/{name}"));
    let mut files: BTreeSet<PathBuf> = programs.iter().chain(&modules).map(PathBuf::from).collect();
    files.insert(LOADER.into());
    for program in &programs {
        files.extend(libraries(from, program)?);
    }
    for file in &files {
        let target = to.join(file);
        std::fs::create_dir_all(target.parent().context("a file lies in a directory")?)?;
        // Behind a link lies the file of the full version: its content under the name that is looked for.
        std::fs::copy(from.join(file), &target).with_context(|| format!("copy {}", file.display()))?;
    }
    let share = format!("usr/share/postgresql/{number}");
    copy_tree(&from.join(&share), &to.join(&share))
}

/// Paths below `from` of everything that a program is linked with.
fn libraries(from: &Path, program: &str) -> anyhow::Result<Vec<PathBuf>> {
    let path = LIBRARIES.map(|dir| from.join(dir).display().to_string()).join(":");
    let mut loader = Command::new(from.join(LOADER));
    loader.args(["--inhibit-cache", "--library-path", &path, "--list"]).arg(from.join(program));
    let output = loader.output().with_context(|| format!("start {loader:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && !said.contains("not found"), "libraries of {program}: {said}");
    // `libpq.so.5 => /…/libpq.so.5 (0x…)`; what the kernel provides has no path.
    let found = said.lines().filter_map(|line| line.split_once(" => ")?.1.split(" (").next());
    found.map(|path| inside(from, path)).collect()
}

/// A library must be the package's own: this machine's would be another version on another machine.
fn inside(from: &Path, path: &str) -> anyhow::Result<PathBuf> {
    let inside = Path::new(path).strip_prefix(from).with_context(|| format!("{path} is not one of the packages'"));
    inside.map(Path::to_owned)
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match source.is_dir() {
            true => copy_tree(&source, &target)?,
            false if source.exists() => drop(std::fs::copy(&source, &target)?),
            // A link into a package that was not unpacked: manual pages, samples.
            false => {}
        }
    }
    Ok(())
}

/// What `apt-cache` says, without a terminal's colours or words of another language.
fn apt(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("apt-cache").args(args).env("LC_ALL", "C").output();
    let output = output.context("start apt-cache (is this Debian?)")?;
    ensure!(output.status.success(), "apt-cache {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
