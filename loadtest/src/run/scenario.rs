//! One scenario: path by path, round by round, plane by plane; what was disturbed is repeated, what takes too long is cut off.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use anyhow::Result;

use super::collect::Figures;
use super::order::order;
use super::plan::{self, Plan};
use super::progress::Progress;
use crate::cli;
use crate::measure::load::{Mark, THRESHOLD};
use crate::path::Path;
use crate::plane::Plane;
use crate::scenario::{Context, Figure, Scenario};

/// How often a disturbed sample is taken again.
const AGAIN: usize = 2;

/// How a scenario went.
pub(super) struct Taken {
    pub(super) notes: Vec<String>,
    pub(super) complete: bool,
}

/// What there is to say of a scenario's samples.
#[derive(Default)]
struct Samples {
    repeated: usize,
    kept: usize,
    most: f64,
    /// What the samples themselves had to say.
    said: Vec<String>,
}

/// Runs it.
#[expect(clippy::too_many_arguments, reason = "each is a part of the run, and this is its only caller")]
pub(super) fn run(
    options: &cli::Run,
    scenario: &Scenario,
    planes: &[Box<dyn Plane>],
    labs: &[String],
    plan: &Plan,
    number: usize,
    end: Instant,
    progress: &Progress,
    figures: &mut Figures,
) -> Result<Taken> {
    let planes: Vec<&dyn Plane> = planes.iter().map(AsRef::as_ref).filter(|plane| scenario.suits(*plane)).collect();
    let paths = plan::paths(options, scenario);
    let whole: usize = paths.iter().map(|path| plan::rounds(options, scenario, *path) * planes.len()).sum();
    let deadline = (Instant::now() + plan.longest(number)).min(end);
    let (mut notes, mut samples, mut done) = (Vec::new(), Samples::default(), 0);
    let mut lost: Vec<(Path, &str)> = Vec::new();
    for path in &paths {
        let column = scenario.path_name(*path);
        for round in 0..plan::rounds(options, scenario, *path) {
            for plane in order(planes.len(), round).map(|turn| planes[turn]) {
                let text = format!("{} {column} {}: round {}", scenario.name, plane.name(), round + 1);
                progress.step(&text, done == 0, plan.left(number, done as f64 / whole as f64));
                done += 1;
                if lost.contains(&(*path, plane.name())) {
                    continue; // said already
                }
                if Instant::now() >= deadline {
                    let left = whole - done + 1;
                    notes.push(format!(
                        "{}: cut off by its deadline, {left} of {whole} samples not taken",
                        scenario.name
                    ));
                    return Ok(samples.finish(scenario, notes, false));
                }
                match take(options, scenario, plane, *path, labs, deadline, &mut samples) {
                    Ok(sample) => figures.add(&scenario.name, &column, plane.name(), sample),
                    Err(error) => {
                        let note = format!("{} {column} {}: failed: {error:#}", scenario.name, plane.name());
                        progress.say(&note);
                        notes.push(note);
                        lost.push((*path, plane.name()));
                    }
                }
            }
        }
    }
    Ok(samples.finish(scenario, notes, lost.is_empty()))
}

/// Takes one sample; again if the machine did something else meanwhile and there is time. The least disturbed one counts.
fn take(
    options: &cli::Run,
    scenario: &Scenario,
    plane: &dyn Plane,
    path: Path,
    labs: &[String],
    deadline: Instant,
    samples: &mut Samples,
) -> Result<Vec<Figure>> {
    let mut best: Option<(f64, Vec<Figure>)> = None;
    for attempt in 0..=AGAIN {
        let cx = Context {
            plane,
            path,
            quick: options.quick,
            deadline,
            labs,
            notes: RefCell::default(),
            foreign: Cell::new(None),
        };
        let (mark, begun) = (Mark::now(labs)?, Instant::now());
        let sampled = (scenario.sample)(&cx);
        for note in cx.notes.take() {
            let note = format!("{} {} {}: {note}", scenario.name, scenario.path_name(path), plane.name());
            if !samples.said.contains(&note) {
                samples.said.push(note);
            }
        }
        let sample = match (sampled, best.take()) {
            (Ok(sample), before) => {
                let foreign = match cx.foreign.get() {
                    Some(foreign) => foreign,
                    None => mark.foreign_since(labs)?,
                };
                before.filter(|(least, _)| *least <= foreign).unwrap_or((foreign, sample))
            }
            (Err(_), Some(before)) => before,
            (Err(error), None) => return Err(error),
        };
        let calm = sample.0 <= THRESHOLD;
        // A scenario that is sampled once is a long one: to repeat it would cost more than it is worth.
        let time = scenario.rounds.of(options.quick) > 1 && Instant::now() + begun.elapsed() * 2 < deadline;
        if calm || attempt == AGAIN || !time {
            if !calm {
                samples.kept += 1;
                samples.most = samples.most.max(sample.0);
            }
            return Ok(sample.1);
        }
        samples.repeated += 1;
        best = Some(sample);
    }
    unreachable!("the last attempt returns")
}

impl Samples {
    fn finish(self, scenario: &Scenario, mut notes: Vec<String>, complete: bool) -> Taken {
        let Samples { repeated, kept, most, said } = self;
        notes.extend(said);
        let name = &scenario.name;
        if kept > 0 {
            let most = most * 100.0;
            notes.push(format!(
                "{name}: other load on the machine; {repeated} samples repeated, {kept} kept all the same (up to {most:.0} % of a core)"
            ));
        } else if repeated > 0 {
            notes.push(format!("{name}: {repeated} samples with other load on the machine were repeated"));
        }
        Taken { notes, complete }
    }
}
