//! `cargo xtask bench`: release binaries, what they need, the load test; and the proof that it would see a slower mesh.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use crate::{cargo, figures, packages, phase, tools};

/// How the load test ends when a figure is worse than its baseline.
const WORSE: i32 = 3;
/// Slow and clean runs of the self-test, each.
const TRIES: usize = 3;
/// Rounds of each of its runs: fewer have no spread to speak of.
const ROUNDS: &str = "5";
/// What it measures: the two exchanges whose p50 and CPU a delay per read must show in, on both ways.
const MEASURED: [&str; 12] = [
    "--scenario",
    "exchange-64B-1",
    "--plane",
    "none",
    "--plane",
    "mesh",
    "--path",
    "same-node-v4-one-core",
    "--path",
    "cross-node-v4-one-core",
    "--rounds",
    ROUNDS,
];
/// Read by node-proxy's feature `testing`.
const DELAY: (&str, &str) = ("CULVERT_TESTING_DELAY_US", "20");

/// Runs it.
pub fn run(mut args: Vec<String>) -> anyhow::Result<ExitCode> {
    let mut take = |flag: &str| {
        let before = args.len();
        args.retain(|arg| arg != flag);
        args.len() < before
    };
    let (write_docs, self_test) = (take("--write-docs"), take("--self-test"));
    let asks_only = args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "--version"));
    let other_verb = args.first().is_some_and(|arg| matches!(arg.as_str(), "list" | "report"));
    if asks_only || other_verb {
        let verb = if other_verb { None } else { Some("run") };
        return end(Command::new(cargo::build()?.join("culvert-loadtest")).args(verb).args(&args));
    }
    packages::root("the load test")?;
    packages::ensure()?;
    if self_test {
        ensure!(args.is_empty() && !write_docs, "--self-test stands alone");
        return prove();
    }
    measure(&args, write_docs)
}

fn measure(args: &[String], write_docs: bool) -> anyhow::Result<ExitCode> {
    let mut more = Vec::new();
    let kept = kept()?;
    for (flag, name) in [("--json-full", "last.json"), ("--html", "last.html")] {
        if !given(args, flag) {
            more.extend([flag.to_owned(), kept.join(name).display().to_string()]);
        }
    }
    if write_docs {
        let page = cargo::workspace().join("docs/performance.md");
        more.extend(["--markdown".to_owned(), page.display().to_string()]);
    }
    let envoy = wants_envoy(args).then(tools::envoy).transpose()?;
    let binaries = cargo::build_release(&[])?;
    let begun = Instant::now();
    let mut command = Command::new(binaries.join("culvert-loadtest"));
    command.arg("run").args(args).args(more).envs(envoy.map(|path| ("CULVERT_ENVOY", path)));
    let code = end(&mut command)?;
    phase::say(&format!(
        "measured in {:.0} s; plots: {}",
        begun.elapsed().as_secs_f64(),
        kept.join("last.html").display()
    ));
    Ok(code)
}

fn given(args: &[String], flag: &str) -> bool {
    args.iter().any(|arg| arg == flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
}

/// Unless planes were chosen and it is not among them.
fn wants_envoy(args: &[String]) -> bool {
    !given(args, "--plane") || args.iter().any(|arg| arg == "envoy" || arg == "--plane=envoy")
}

/// Where results are kept from run to run, outside version control.
fn kept() -> anyhow::Result<PathBuf> {
    let place = cargo::target()?.join("bench");
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    Ok(place)
}

/// A hundred thousand workloads from files, by these binaries: every figure of the load test's scenario.
pub fn workloads(binaries: &Path) -> anyhow::Result<Vec<figures::Row>> {
    const SCENARIO: &str = "workloads-100000";
    let result = kept()?.join("workloads.json");
    let mut command = Command::new(binaries.join("culvert-loadtest"));
    command.args(["run", "--plane", "mesh", "--scenario", SCENARIO, "--rounds", "1", "--json"]).arg(&result);
    cargo::run(&mut command)?;
    let text = std::fs::read_to_string(&result).with_context(|| format!("read {}", result.display()))?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).with_context(|| result.display().to_string())?;
    ensure!(!rows.is_empty(), "{SCENARIO} has no figure: what it printed says why");
    let row = |row: &serde_json::Value| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let value = format!("{:.2} {}", row["median"].as_f64().unwrap_or(f64::NAN), text("unit"));
        figures::Row::new(SCENARIO, &text("metric"), &value, "from files")
    };
    Ok(rows.iter().map(row).collect())
}

/// The load test's own end is ours.
fn end(command: &mut Command) -> anyhow::Result<ExitCode> {
    let code = code(command)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn code(command: &mut Command) -> anyhow::Result<i32> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    status.code().with_context(|| format!("{command:?} ended with {status}"))
}

/// A clean baseline, then slow and clean runs by turns; every slow one must be flagged. That no clean one is, is printed and not
/// asked: on a machine with other work a clean run can be slower for real.
fn prove() -> anyhow::Result<ExitCode> {
    let binaries = testing_binaries()?;
    let baseline = kept()?.join("self-test.json");
    let run = |slow: bool, compare: bool| -> anyhow::Result<i32> {
        let mut command = Command::new(binaries.join("culvert-loadtest"));
        command.arg("run").args(MEASURED).arg(if compare { "--baseline" } else { "--json" }).arg(&baseline);
        command.env_remove(DELAY.0).envs(slow.then_some(DELAY));
        code(&mut command)
    };
    let ended = phase::run("baseline", || run(false, false))?;
    ensure!(ended == 0, "the baseline ended with code {ended}");
    let mut flagged = [0, 0];
    for attempt in 1..=TRIES {
        for slow in [true, false] {
            let name = if slow { "with a busy loop of 20 µs" } else { "clean" };
            match phase::run(&format!("run {attempt} of {TRIES}, {name}"), || run(slow, true))? {
                0 => phase::say("not flagged"),
                WORSE => {
                    phase::say("flagged");
                    flagged[usize::from(slow)] += 1;
                }
                other => bail!("the load test ended with code {other}"),
            }
        }
    }
    let [clean, slow] = flagged;
    phase::say(&format!("flagged: {slow} of {TRIES} runs with a busy loop of 20 µs, {clean} of {TRIES} clean runs"));
    Ok(if slow == TRIES { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The testing build, copied to a place of its own; the ordinary binaries stand in the usual place again afterwards.
fn testing_binaries() -> anyhow::Result<PathBuf> {
    let place = kept()?.join("testing");
    let built = cargo::build_release(&["testing"])?;
    copy_programs(&built, &place)?;
    cargo::build_release(&[])?;
    Ok(place)
}

fn copy_programs(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let path = entry?.path();
        // Programs have no extension; what cargo keeps beside them (`.d`, `.rlib`) has.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if let (true, false, None, Some(name)) = (path.is_file(), hidden, path.extension(), path.file_name()) {
            let target = to.join(name);
            // A running program cannot be written over, but another file may take its name.
            let _ = std::fs::remove_file(&target);
            std::fs::copy(&path, &target)
                .with_context(|| format!("copy {} to {}", path.display(), target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn envoy_is_fetched_only_when_it_is_measured() {
        assert!(wants_envoy(&args("--quick")));
        assert!(wants_envoy(&args("--plane none --plane envoy")));
        assert!(!wants_envoy(&args("--plane none --plane mesh")));
    }

    #[test]
    fn a_file_that_was_asked_for_is_not_asked_for_twice() {
        assert!(given(&args("--html=x"), "--html") && given(&args("--html x"), "--html"));
        assert!(!given(&args("--htmlish x"), "--html"));
    }
}
