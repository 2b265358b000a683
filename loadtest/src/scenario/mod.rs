//! What is measured: each scenario is a function over one plane and one path that gives figures; the engine calls it in turns.

mod bulk;
mod connect;
mod context;
mod exchange;
mod held;
mod identities;
mod idle;
mod pods;
mod policy;
mod short;
mod start;
mod traffic;
mod workloads;

use std::time::Duration;

use anyhow::Result;

use crate::path::{Family, Layout, Path, Place};
use crate::plane::Plane;

pub use context::Context;

/// One value of one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// `p50`, `rate`, ...
    pub metric: String,
    /// `us`, `1/s`, ...
    pub unit: &'static str,
    /// The value.
    pub value: f64,
}

impl Figure {
    /// One.
    pub fn new(metric: impl Into<String>, unit: &'static str, value: f64) -> Figure {
        Figure { metric: metric.into(), unit, value }
    }
}

/// Where a scenario makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// On all eight; on all but the two main ones with few rounds.
    All,
    /// IPv4 on one core, to both places.
    Main,
    /// The main path to one place.
    One(Place),
    /// On none: what a node costs, or how long something takes. The column says `node`.
    Node,
}

/// Which planes can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    /// All.
    All,
    /// One of each kind: no variants of another one.
    Kinds,
    /// Those with the mesh's control plane and node processes, without variants.
    Mesh,
}

/// A number for the whole run and one for `--quick`.
#[derive(Clone, Copy, Debug)]
pub struct Sized<T> {
    /// Without `--quick`.
    pub whole: T,
    /// With it.
    pub quick: T,
}

impl<T: Copy> Sized<T> {
    /// The one of this run.
    pub fn of(self, quick: bool) -> T {
        if quick { self.quick } else { self.whole }
    }
}

/// Takes one sample.
pub type Sample = Box<dyn Fn(&Context<'_>) -> Result<Vec<Figure>>>;

/// One scenario.
pub struct Scenario {
    /// The `scenario` column.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Where.
    pub paths: Paths,
    /// On which planes.
    pub planes: Planes,
    /// How often, on a main path.
    pub rounds: Sized<usize>,
    /// How long a sample takes, set-up included: what the plan of the run is made of.
    pub takes: Sized<Duration>,
    /// Its work.
    pub sample: Sample,
}

impl Scenario {
    /// The paths of this scenario in a run.
    pub fn paths(&self, quick: bool) -> Vec<Path> {
        let main = |place| Path { place, family: Family::V4, layout: Layout::OneCore };
        match self.paths {
            Paths::All if quick => vec![main(Place::SameNode), main(Place::CrossNode)],
            Paths::All => Path::all(),
            Paths::Main => vec![main(Place::SameNode), main(Place::CrossNode)],
            Paths::One(place) => vec![main(place)],
            Paths::Node => vec![main(Place::SameNode)],
        }
    }

    /// The `path` column.
    pub fn path_name(&self, path: Path) -> String {
        if self.paths == Paths::Node { "node".into() } else { path.to_string() }
    }

    /// How often on this path. Beside the main ones, twice: enough to see a spread.
    pub fn rounds_on(&self, path: Path, quick: bool) -> usize {
        let rounds = self.rounds.of(quick);
        if path.is_main() { rounds } else { rounds.min(2) }
    }

    /// Whether a plane can be asked.
    pub fn suits(&self, plane: &dyn Plane) -> bool {
        let variant = plane.name().contains('-');
        match self.planes {
            Planes::All => true,
            Planes::Kinds => !variant,
            Planes::Mesh => plane.lab().has_mesh() && !variant,
        }
    }
}

/// All, in the order they are run.
pub fn all() -> Vec<Scenario> {
    let traffic = [exchange::all(), connect::all(), bulk::all()];
    let pace = [identities::all(), start::all(), policy::all(), pods::all(), workloads::all()];
    // Last: they leave the most behind in the kernel (connections in TIME-WAIT, tracked flows).
    let many = [idle::all(), short::all()];
    traffic.into_iter().chain(pace).chain(many).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_have_names_of_their_own() {
        let mut names: Vec<String> = all().into_iter().map(|scenario| scenario.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
