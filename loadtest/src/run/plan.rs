//! What a run will do and how long it will take, before it does it.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cli;
use crate::path::Path;
use crate::plane::{self, Plane};
use crate::scenario::{self, Scenario};

/// How much longer than planned a scenario may take before it is cut off: room for samples that are repeated.
const ROOM: f64 = 1.5;
/// What every scenario may take beyond that, for a slow moment of the machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The plan: the time of each scenario.
pub(super) struct Plan {
    times: Vec<Duration>,
}

impl Plan {
    pub(super) fn new(options: &cli::Run, scenarios: &[Scenario], planes: &[Box<dyn Plane>]) -> Plan {
        let time = |scenario: &Scenario| -> Duration {
            let planes = planes.iter().filter(|plane| scenario.suits(plane.as_ref())).count();
            let samples: usize =
                paths(options, scenario).iter().map(|path| rounds(options, scenario, *path) * planes).sum();
            scenario.takes.of(options.quick) * u32::try_from(samples).unwrap_or(u32::MAX)
        };
        Plan { times: scenarios.iter().map(time).collect() }
    }

    /// How long scenario `number` may take at most.
    pub(super) fn longest(&self, number: usize) -> Duration {
        self.times[number].mul_f64(ROOM) + PATIENCE
    }

    /// What is left to do from scenario `number` on, of which `done` (0 to 1) is done.
    pub(super) fn left(&self, number: usize, done: f64) -> Duration {
        let rest: Duration = self.times[number + 1..].iter().sum();
        rest + self.times[number].mul_f64((1.0 - done).clamp(0.0, 1.0))
    }

    /// A plan that cannot be kept is said at once.
    pub(super) fn notes(&self, longest: Duration) -> Vec<String> {
        let whole: Duration = self.times.iter().sum();
        let (whole, most) = (whole.as_secs() / 60, longest.as_secs() / 60);
        if whole < most {
            Vec::new()
        } else {
            vec![format!("the plan takes {whole} minutes and is cut off after {most}")]
        }
    }
}

/// The paths of a scenario that were asked for; what has no path is always measured.
pub(super) fn paths(options: &cli::Run, scenario: &Scenario) -> Vec<Path> {
    if options.path.is_empty() || scenario.paths == scenario::Paths::Node {
        return scenario.paths(options.quick);
    }
    // One that was named is measured also where the scenario would leave it out for time.
    let all = scenario.paths(options.quick && !options.path.iter().any(|path| !path.is_main()));
    all.into_iter().filter(|path| options.path.contains(path)).collect()
}

/// How often a scenario is sampled on a path.
pub(super) fn rounds(options: &cli::Run, scenario: &Scenario, path: Path) -> usize {
    options.rounds.unwrap_or_else(|| scenario.rounds_on(path, options.quick))
}

/// The planes that were asked for, in their own order.
pub(super) fn planes(options: &cli::Run) -> Result<Vec<String>> {
    let known: Vec<&str> = plane::KNOWN.iter().map(|(name, _)| *name).collect();
    for name in &options.plane {
        ensure!(known.contains(&name.as_str()), "no plane {name}: {}", known.join(", "));
    }
    let wanted = |name: &&str| options.plane.is_empty() || options.plane.iter().any(|plane| plane == name);
    Ok(known.into_iter().filter(wanted).map(str::to_owned).collect())
}

/// The scenarios that were asked for, in their own order.
pub(super) fn scenarios(options: &cli::Run) -> Result<Vec<Scenario>> {
    let meant = |scenario: &Scenario, wanted: &str| {
        scenario.name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let all = scenario::all();
    for wanted in &options.scenario {
        ensure!(all.iter().any(|scenario| meant(scenario, wanted)), "no scenario {wanted} (culvert-loadtest list)");
    }
    let chosen = |scenario: &Scenario| {
        options.scenario.is_empty() || options.scenario.iter().any(|wanted| meant(scenario, wanted))
    };
    Ok(all.into_iter().filter(chosen).collect())
}

/// The command that does the same again.
pub(super) fn command(options: &cli::Run) -> String {
    let cli::Run { quick, scenario, plane, path, rounds, .. } = options;
    let mut words = vec!["cargo xtask bench".to_owned()];
    words.extend(quick.then(|| "--quick".to_owned()));
    words.extend(scenario.iter().map(|name| format!("--scenario {name}")));
    words.extend(plane.iter().map(|name| format!("--plane {name}")));
    words.extend(path.iter().map(|path| format!("--path {path}")));
    words.extend(rounds.iter().map(|rounds| format!("--rounds {rounds}")));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(scenario: &[&str], plane: &[&str]) -> cli::Run {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        cli::Run { scenario: strings(scenario), plane: strings(plane), ..cli::Run::default() }
    }

    #[test]
    fn a_name_chooses_itself_and_what_begins_with_it_and_a_wrong_one_is_an_error() {
        let names = |wanted: &[&str]| -> Vec<String> {
            scenarios(&options(wanted, &[])).expect("known").into_iter().map(|scenario| scenario.name).collect()
        };
        assert_eq!(names(&["connect-1"]), ["connect-1"], "and not connect-16");
        assert_eq!(names(&["bulk-up"]), ["bulk-up-1", "bulk-up-8"]);
        assert_eq!(names(&[]).len(), scenario::all().len());
        assert!(scenarios(&options(&["bulk-up", "bulk-9"], &[])).is_err());
        assert_eq!(planes(&options(&[], &["mesh", "none"])).expect("known"), ["none", "mesh"]);
        assert!(planes(&options(&[], &["istio"])).is_err());
    }

    #[test]
    fn the_command_says_all_that_decides_what_is_measured() {
        let mut options = options(&["bulk"], &["none"]);
        options.rounds = Some(2);
        options.path = vec![Path::all()[0]];
        let should = "cargo xtask bench --scenario bulk --plane none --path same-node-v4-one-core --rounds 2";
        assert_eq!(command(&options), should);
    }
}
