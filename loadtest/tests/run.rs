//! The program itself, in labs of its own: it gives a figure for everything that was asked for, and leaves nothing on the machine.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Pid, Signal, state, wait};
use loadtest::report::output;

/// A run of seconds; far more when the machine is busy.
const DEADLINE: Duration = Duration::from_secs(150);
const PLANES: [&str; 3] = ["none", "mesh", "mesh-quiet"];

/// A run measures: beside another one it would repeat every sample that the other disturbed.
static ALONE: Mutex<()> = Mutex::new(());

/// What a run says on its standard error, for the message of a test that fails.
fn said(dir: &tempfile::TempDir) -> String {
    std::fs::read_to_string(dir.path().join("stderr")).unwrap_or_default()
}

/// A run on these planes; the mesh's binaries are beside the program, or where `cargo xtask test` built them.
fn start(dir: &tempfile::TempDir, args: &[&str]) -> Result<Child> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: network namespaces, nf_tables and cgroups");
    let program = PathBuf::from(env!("CARGO_BIN_EXE_culvert-loadtest"));
    let beside = program.parent().context("a program lies in a directory")?.to_owned();
    let binaries = std::env::var_os("CULVERT_BINARIES").map_or(beside, PathBuf::from);
    let mut command = Command::new(program);
    command.args(["run", "--quick"]).args(PLANES.iter().flat_map(|plane| ["--plane", plane])).args(args);
    command.arg("--binaries").arg(binaries).stdout(Stdio::null());
    command.stderr(std::fs::File::create(dir.path().join("stderr"))?);
    command.spawn().context("start culvert-loadtest")
}

fn end(mut run: Child) -> Result<Option<i32>> {
    let ended = wait::until("the run to end", DEADLINE, || run.try_wait().ok().flatten());
    if ended.is_err() {
        run.kill()?;
        run.wait()?;
    }
    Ok(ended?.code())
}

fn labs(pid: u32) -> [String; 3] {
    PLANES.map(|plane| format!("bench-{pid}-{plane}"))
}

fn nothing_left(pid: u32) -> Result<()> {
    for lab in labs(pid) {
        wait::until_true("the last process to be gone", Duration::from_secs(10), || state::leftovers(&lab).is_empty())
            .with_context(|| format!("left: {:?}", state::leftovers(&lab)))?;
    }
    Ok(())
}

#[test]
fn a_tiny_run_has_every_figure_that_was_asked_for_and_leaves_nothing() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scenarios = [
        ("exchange-64B-1", "p50"),
        ("exchange-64B-paced", "p99.9"),
        ("connect-16", "rate"),
        ("bulk-down-8", "throughput"),
    ];
    let paths = ["same-node-v4-one-core", "cross-node-v6-two-cores"];
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("figures.json");
    let mut args = vec!["--rounds", "1", "--json-full", file.to_str().context("a path in UTF-8")?];
    args.extend(scenarios.iter().flat_map(|(scenario, _)| ["--scenario", scenario]));
    args.extend(paths.iter().flat_map(|path| ["--path", path]));
    let run = start(&dir, &args)?;
    let pid = run.id();
    let code = end(run)?;
    let outcome = output::read(&file).with_context(|| format!("the run ended with {code:?}: {}", said(&dir)))?;
    ensure!(code == Some(0), "{code:?}: {:?}: {}", outcome.notes, said(&dir));
    let has = |scenario: &str, path: &str, plane: &str, metric: &str| {
        outcome.rows.iter().any(|row| {
            (row.scenario.as_str(), row.path.as_str(), row.plane.as_str()) == (scenario, path, plane)
                && row.metric == metric
                && row.median > 0.0
                && row.runs == 1
        })
    };
    for (scenario, metric) in scenarios {
        for path in paths {
            for plane in PLANES {
                ensure!(has(scenario, path, plane, metric), "no {metric} of {scenario} {path} {plane}");
            }
            for plane in ["mesh", "mesh-quiet"] {
                ensure!(has(scenario, path, plane, "proxy_cpu"), "no CPU of the proxies: {scenario} {path} {plane}");
            }
            ensure!(!has(scenario, path, "none", "proxy_cpu"), "there is no proxy in the plane none");
        }
    }
    let asked: BTreeSet<&str> = scenarios.iter().map(|(scenario, _)| *scenario).collect();
    ensure!(outcome.rows.iter().all(|row| asked.contains(row.scenario.as_str())), "a scenario nobody asked for");
    nothing_left(pid)
}

#[test]
fn an_interrupt_in_the_middle_of_a_run_leaves_nothing() -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let mut run = start(&dir, &["--scenario", "exchange", "--rounds", "100"])?;
    let pid = run.id();
    let last = state::Dir::of(&labs(pid)[2])?;
    // Its first client runs: all planes stand and are being measured.
    let measuring = wait::until_true("the run to be in the middle", DEADLINE, || {
        last.join("processes/bench-client-bench.json").exists() || run.try_wait().ok().flatten().is_some()
    });
    let ended = run.try_wait()?;
    ensure!(measuring.is_ok() && ended.is_none(), "the run ended before its middle: {ended:?}: {}", said(&dir));
    // The counter-proof: there is something to be left.
    ensure!(state::leftovers(last.name()).len() > 5, "{:?}", state::leftovers(last.name()));
    ensure!(Pid::of(pid)?.signal(Signal::INT), "it had ended already");
    ensure!(end(run)? == Some(130), "not ended as interrupted");
    nothing_left(pid)
}
