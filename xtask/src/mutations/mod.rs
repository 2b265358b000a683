//! Guards that are taken away one at a time, each in a copy of the checkout: the test that is named beside it must turn red. A test that
//! stays green without the guard does not hold it.
//!
//! The list is [`list`]. A unit test holds that each entry still finds its text, so the list cannot rot between two long runs.

mod list;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::{cargo, packages, phase};

use list::MUTATIONS;

/// Longer than any of the named tests takes. A test that waits for ever without its guard is red as well.
const MOST: Duration = Duration::from_secs(180);

/// One guard, and how it is taken away.
struct Mutation {
    /// What it guards, for a person.
    guard: &'static str,
    /// Below the checkout.
    file: &'static str,
    /// What stands there, exactly once.
    from: &'static str,
    to: &'static str,
    /// Who must turn red.
    test: Held,
}

/// A test, by where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    /// Beside the code of a program of this name, which is also its package's.
    Program { package: &'static str, name: &'static str },
    /// In a file under `tests/` of a package.
    Integration { package: &'static str, target: &'static str, name: &'static str },
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Held::Program { name, .. } | Held::Integration { name, .. } => name,
        }
    }

    /// cargo's words for it. Of the whole workspace, so that dependencies have the features that they have there.
    fn target(self) -> [&'static str; 3] {
        match self {
            Held::Program { package, .. } => ["--workspace", "--bin", package],
            Held::Integration { target, .. } => ["--workspace", "--test", target],
        }
    }
}

/// Takes away each guard whose text contains `filter`; an error names those whose test stayed green.
pub fn run(filter: Option<&str>) -> anyhow::Result<ExitCode> {
    packages::root("the mutations")?;
    packages::ensure()?;
    let wanted = |mutation: &&Mutation| filter.is_none_or(|filter| mutation.guard.contains(filter));
    let mutations: Vec<&Mutation> = MUTATIONS.iter().filter(wanted).collect();
    ensure!(!mutations.is_empty(), "no mutation's guard contains {:?}", filter.unwrap_or_default());
    let tree = Tree::copy()?;
    phase::run("mutations: the named tests, with all guards in place", || {
        let tests: BTreeSet<Held> = mutations.iter().map(|mutation| mutation.test).collect();
        tests.into_iter().try_for_each(|test| match tree.test(test)? {
            Outcome::Green => Ok(()),
            Outcome::Red => bail!("{} is red before anything was taken away", test.name()),
        })
    })?;
    let mut held = Vec::new();
    for (number, mutation) in mutations.iter().enumerate() {
        let what = format!("mutation {} of {}: {}", number + 1, mutations.len(), mutation.guard);
        let outcome = phase::run(&what, || tree.mutated(mutation))?;
        if outcome == Outcome::Green {
            phase::say(&format!("  {} stayed green", mutation.test.name()));
            held.push(format!("{}: {}", mutation.guard, mutation.test.name()));
        }
    }
    ensure!(held.is_empty(), "{} guards can be taken away unseen:\n{}", held.len(), held.join("\n"));
    phase::say(&format!("{} guards: each turned its test red", mutations.len()));
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Green,
    Red,
}

/// A copy of the checkout beside the build's own files, kept from run to run so that little is built anew. What is built there is nobody
/// else's: a program without one of its guards must not be taken for the real one.
struct Tree {
    root: PathBuf,
    target: PathBuf,
}

impl Tree {
    fn copy() -> anyhow::Result<Tree> {
        let beside = cargo::target()?.join("mutations");
        let tree = Tree { root: beside.join("tree"), target: beside.join("target") };
        if !tree.target.exists() {
            // Dependencies as they were built for the tests.
            std::fs::create_dir_all(tree.target.join(cargo::TARGET))?;
            let built = cargo::target()?;
            for part in ["debug".to_owned(), format!("{}/debug", cargo::TARGET)] {
                let (from, to) = (built.join(&part), tree.target.join(&part));
                if from.is_dir() {
                    cargo::run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to))?;
                }
            }
        }
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(cargo::workspace())
            .output()
            .context("git ls-files")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let names = String::from_utf8(listed.stdout).context("a file name that is no UTF-8")?;
        for name in names.split_terminator('\0') {
            copy(&cargo::workspace().join(name), &tree.root.join(name))?;
        }
        Ok(tree)
    }

    /// Runs the mutated code's test; the copy is whole again afterwards.
    fn mutated(&self, mutation: &Mutation) -> anyhow::Result<Outcome> {
        let file = self.root.join(mutation.file);
        let whole = std::fs::read_to_string(&file).with_context(|| mutation.file.to_owned())?;
        let changed = mutation.apply(&whole)?;
        std::fs::write(&file, changed)?;
        let outcome = self.test(mutation.test);
        std::fs::write(&file, whole)?;
        outcome
    }

    fn test(&self, test: Held) -> anyhow::Result<Outcome> {
        let cargo = || {
            let mut command = cargo::cargo(["test", "--locked", "--quiet"]);
            command.current_dir(&self.root).args(test.target());
            command.env("CARGO_TARGET_DIR", &self.target).env("CARGO_INCREMENTAL", "1").stdin(Stdio::null());
            command
        };
        let built = cargo().arg("--no-run").output().context("cargo")?;
        ensure!(
            built.status.success(),
            "it does not build, which proves nothing:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
        let mut running = cargo();
        running.args(["--", "--exact", test.name(), "--include-ignored"]);
        running.stdout(Stdio::piped()).stderr(Stdio::null());
        let ended = within(running, MOST)?;
        let Some((success, printed)) = ended else { return Ok(Outcome::Red) };
        let ran =
            printed.lines().filter_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<u32>().ok());
        ensure!(ran.sum::<u32>() == 1, "there is no test {}:\n{printed}", test.name());
        Ok(if success { Outcome::Green } else { Outcome::Red })
    }
}

impl Mutation {
    fn apply(&self, whole: &str) -> anyhow::Result<String> {
        let found = whole.matches(self.from).count();
        ensure!(found == 1, "{}: {:?} stands there {found} times", self.file, self.from);
        Ok(whole.replacen(self.from, self.to, 1))
    }
}

/// Whether it succeeded, and what it printed; `None` if it had to be ended.
fn within(mut command: Command, most: Duration) -> anyhow::Result<Option<(bool, String)>> {
    use std::io::Read as _;
    use std::os::unix::process::CommandExt as _;
    // A group of its own: cargo's child is the test.
    let mut child = command.process_group(0).spawn().context("cargo test")?;
    let mut stdout = child.stdout.take().context("piped")?;
    let printed = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let until = Instant::now() + most;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > until {
            let group = format!("-{}", child.id());
            cargo::run(Command::new("kill").args(["-KILL", "--", &group]))?;
            child.wait()?;
            break None;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let printed = printed.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(status.map(|status| (status.success(), printed)))
}

/// Writes only what differs: cargo goes by times.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let named = || format!("{} to {}", from.display(), to.display());
    if from.is_symlink() || !from.is_file() {
        // Nothing is built from a link, and a file that was just deleted is none.
        return Ok(());
    }
    let bytes = std::fs::read(from).with_context(named)?;
    if std::fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    std::fs::create_dir_all(to.parent().context("a file has a directory")?).with_context(named)?;
    std::fs::write(to, bytes).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_finds_its_text_once_and_changes_it() {
        let mut lost = Vec::new();
        for mutation in MUTATIONS {
            let whole = std::fs::read_to_string(cargo::workspace().join(mutation.file)).expect(mutation.file);
            match mutation.apply(&whole) {
                Ok(changed) => assert_ne!(changed, whole, "{}", mutation.guard),
                Err(error) => lost.push(error.to_string()),
            }
        }
        assert!(lost.is_empty(), "{lost:#?}");
    }

    #[test]
    fn every_named_test_is_there() {
        for mutation in MUTATIONS {
            let name = mutation.test.name().rsplit("::").next().expect("a name");
            let (Held::Program { package, .. } | Held::Integration { package, .. }) = mutation.test;
            let found = Command::new("grep")
                .args(["-rq", "--include=*.rs", &format!("fn {name}("), package])
                .current_dir(cargo::workspace())
                .status()
                .expect("grep");
            assert!(found.success(), "{}: {package} has no test {name}", mutation.guard);
        }
    }
}
