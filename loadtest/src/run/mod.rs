//! A run: planes up, scenarios in turns, figures together, everything gone.

mod collect;
mod machine;
mod order;
mod plan;
mod progress;
mod scenario;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{binaries, interrupt, state};

use crate::cli;
use crate::plane::{self, Plane};
use crate::result::Outcome;
use crate::scenario::Scenario;

use collect::Figures;
use plan::Plan;
use progress::Progress;

/// When a run ends whatever it has: what is said to people, builds excluded.
const LONGEST: Duration = Duration::from_secs(25 * 60);
/// The same for `--quick`.
const LONGEST_QUICK: Duration = Duration::from_secs(5 * 60);
/// Kept back for taking the planes down.
const DOWN: Duration = Duration::from_secs(10);

/// What became of a run.
pub struct Ran {
    /// Its figures.
    pub outcome: Outcome,
    /// Every sample that was planned was taken.
    pub complete: bool,
}

/// Measures what `options` ask for. SIGINT, SIGTERM and SIGHUP take everything down and end the process with 130.
pub fn run(options: &cli::Run) -> Result<Ran> {
    let start = Instant::now();
    if let Some(dir) = &options.binaries {
        binaries::use_dir(dir)?;
    }
    let names = plan::planes(options)?;
    let scenarios = plan::scenarios(options)?;
    if !options.scenario.is_empty() {
        // What was asked for by name must not be left out in silence.
        if let Some(scenario) = scenarios.iter().find(|scenario| plan::paths(options, scenario).is_empty()) {
            let has: Vec<String> = scenario.paths(false).iter().map(ToString::to_string).collect();
            anyhow::bail!(
                "scenario {} is measured on none of the given paths; it has {}",
                scenario.name,
                has.join(", ")
            );
        }
    }
    let labs: Vec<String> = names.iter().map(|name| format!("bench-{}-{name}", std::process::id())).collect();
    interrupt::take_all_down_on_signal(labs.iter().map(|lab| state::Dir::of(lab)).collect::<Result<_>>()?)?;
    let ran = measure(options, start, &names, &labs, &scenarios);
    interrupt::wait_if_stopping();
    ran
}

fn measure(
    options: &cli::Run,
    start: Instant,
    names: &[String],
    labs: &[String],
    scenarios: &[Scenario],
) -> Result<Ran> {
    let progress = Progress::new();
    let mut planes: Vec<Box<dyn Plane>> = Vec::new();
    for (name, lab) in names.iter().zip(labs) {
        progress.say(&format!("plane {name}: making its nodes and pods"));
        planes.push(plane::up(name, lab).with_context(|| format!("make plane {name}"))?);
    }
    let longest = if options.quick { LONGEST_QUICK } else { LONGEST };
    let plan = Plan::new(options, scenarios, &planes);
    let mut figures = Figures::default();
    let mut notes = plan.notes(longest);
    let mut complete = true;
    for (number, scenario) in scenarios.iter().enumerate() {
        let end = start + longest - DOWN;
        let taken = scenario::run(options, scenario, &planes, labs, &plan, number, end, &progress, &mut figures)?;
        complete &= taken.complete;
        notes.extend(taken.notes);
    }
    let mut machine = machine::describe();
    machine.extend(planes.iter().flat_map(|plane| plane.about()));
    for plane in planes {
        let name = plane.name().to_owned();
        plane.down().with_context(|| format!("take plane {name} down"))?;
    }
    for lab in labs {
        let left = state::leftovers(lab);
        ensure!(left.is_empty(), "lab {lab} left {left:?}");
    }
    let command = plan::command(options);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Ran { outcome: Outcome { machine, command, rows: figures.rows(), notes, seconds }, complete })
}
