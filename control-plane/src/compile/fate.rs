//! What becomes of a policy: whether it is carried out as written, at which pods, and in plain words what happens where it is not. It is
//! gathered while the policy is compiled, so that nothing is said that the compiler does not do. One text serves the log, the metric
//! and the policy's status.

use std::collections::BTreeMap;

use mesh_api::manifests::{Key, Kind, ObjectRef};
use mesh_model::Tunnel;

use super::Problem;
use super::place::Place;
use super::workloads::Compiling;

/// What becomes of a policy, the worst last: of several findings the worst is its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Carried out as written.
    Enforced,
    /// As written, at no pod that there is now.
    SelectsNoPod,
    /// Judged and reported; decides nothing, as its annotation asks.
    DryRun,
    /// Carried out, and refuses more than was written.
    StricterThanWritten,
    /// Carried out at those of its targets that are services of its namespace, and not at the others.
    ServicesOnly,
    /// Carried out at pods of its own namespace, and not at those of others that stand behind its services.
    OwnPodsOnly,
    /// Decides nothing.
    NoEffect,
    /// Asks for what this mesh does not do: refuses whatever it selects.
    NotSupported,
    /// Cannot be understood; the version before could be, and stays.
    LastGoodKept,
    /// Cannot be understood: refuses whatever it selects.
    NotUnderstood,
}

impl Outcome {
    /// Whether the policy does what it says.
    pub const fn is_as_written(self) -> bool {
        matches!(self, Self::Enforced | Self::SelectsNoPod | Self::DryRun)
    }

    /// A condition's reason: one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "Enforced",
            Self::SelectsNoPod => "SelectsNoPod",
            Self::DryRun => "DryRun",
            Self::StricterThanWritten => "StricterThanWritten",
            Self::ServicesOnly => "ServicesOnly",
            Self::OwnPodsOnly => "OwnPodsOnly",
            Self::NoEffect => "NoEffect",
            Self::NotSupported => "NotSupported",
            Self::LastGoodKept => "LastGoodKept",
            Self::NotUnderstood => "NotUnderstood",
        }
    }
}

/// What is said of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The policy.
    pub object: ObjectRef,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The same in words, with the place in the document and what will happen.
    pub message: String,
}

/// The pods that a policy applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Pods that run or are to run, each with a network of its own.
    pods: usize,
    /// Of these, those in the mesh.
    in_mesh: usize,
}

impl Reach {
    pub(super) fn add(&mut self, pod: &Compiling) {
        self.pods += 1;
        self.in_mesh += usize::from(pod.workload.tunnel == Tunnel::Hbone);
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.pods += other.pods;
        self.in_mesh += other.in_mesh;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods == 0
    }

    /// Which pods, in words.
    fn text(&self) -> String {
        match self.pods {
            0 => "every pod that it comes to select (none now)".to_owned(),
            1 => "the pod that it selects".to_owned(),
            more => format!("the {more} pods that it selects"),
        }
    }

    /// What of them is out of reach, if anything is.
    fn aside(&self) -> Option<String> {
        match self.pods - self.in_mesh {
            0 => None,
            out if out == self.pods => Some("none of them in the mesh: nothing is enforced there".to_owned()),
            out => Some(format!("{out} of them not in the mesh: nothing is enforced there")),
        }
    }
}

/// Gathers what is found out about one policy.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    object: ObjectRef,
    dry_run: bool,
    outcome: Outcome,
    notes: Vec<String>,
    pub(super) reach: Reach,
    /// It applies to every pod of the mesh, so nobody has to count those of his namespace for it.
    pub(super) everywhere: bool,
}

impl Fate {
    /// Of a policy of which nothing bad is known yet.
    pub(super) fn new(kind: Kind, (namespace, name): &Key, dry_run: bool) -> Self {
        let object = ObjectRef { kind, namespace: namespace.clone(), name: name.clone() };
        Self {
            object,
            dry_run,
            outcome: Outcome::Enforced,
            notes: Vec::new(),
            reach: Reach::default(),
            everywhere: false,
        }
    }

    /// Something that is not as written.
    pub(super) fn note(&mut self, outcome: Outcome, text: impl Into<String>) {
        self.outcome = self.outcome.max(outcome);
        self.notes.push(text.into());
    }

    /// All of it; `means` is what the policy does where it is in force. What is not as written is a problem too.
    pub(super) fn tell(self, means: &str, problems: &mut Vec<Problem>) -> Told {
        let Self { object, dry_run, mut outcome, notes, reach, everywhere: _ } = self;
        if outcome == Outcome::Enforced {
            outcome = match (dry_run, reach.is_empty()) {
                (true, _) => Outcome::DryRun,
                (false, true) => Outcome::SelectsNoPod,
                (false, false) => Outcome::Enforced,
            };
        }
        let ends = |at: &str| match outcome {
            Outcome::Enforced
            | Outcome::SelectsNoPod
            | Outcome::DryRun
            | Outcome::StricterThanWritten
            | Outcome::ServicesOnly
            | Outcome::OwnPodsOnly => match dry_run {
                false => format!("{means}; in force at {at}"),
                true => format!("{means}; a dry run: it is judged at {at} and reported, and decides nothing"),
            },
            Outcome::NoEffect => "it decides nothing".to_owned(),
            Outcome::NotSupported | Outcome::NotUnderstood if dry_run => {
                format!("it would refuse every connection to {at}, but is a dry run and decides nothing")
            }
            Outcome::NotSupported | Outcome::NotUnderstood => {
                format!("every connection to {at} is refused until this is mended")
            }
            Outcome::LastGoodKept => format!(
                "the version before stays in force at {at}; a control plane that starts anew does not know that one and \
                 refuses every connection to what this one selects"
            ),
        };
        let text = |at: &str| notes.iter().cloned().chain([ends(at)]).collect::<Vec<_>>().join("; ");
        let aside = reach.aside().filter(|_| outcome != Outcome::NoEffect);
        let message = [text(&reach.text())].into_iter().chain(aside).collect::<Vec<_>>().join("; ");
        if !outcome.is_as_written() {
            // A problem is logged when it is new: it may not be another one with each pod that comes.
            problems.push(Problem { object: object.clone(), text: text("all that it selects") });
        }
        Told { object, outcome, message }
    }
}

/// What compiling a namespace finds out.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What is not carried out as written.
    pub(super) problems: Vec<Problem>,
    /// What becomes of its policies.
    pub(super) told: Vec<Told>,
    /// Its pods at which policies can be enforced.
    pub(super) all: Reach,
    /// Of these, those that a policy of the root namespace applies to, where that is not all of them.
    pub(super) of_root: BTreeMap<ObjectRef, Reach>,
    /// Policies of the root namespace, which is this one: what becomes of them is known when every namespace has been counted. With
    /// what each does, in words.
    pub(super) open: Vec<(Fate, String)>,
}

impl Findings {
    /// All is known about a policy of this namespace.
    pub(super) fn conclude(&mut self, place: &Place<'_>, fate: Fate, means: String) {
        match place.is_root() {
            true => self.open.push((fate, means)),
            false => self.told.push(fate.tell(&means, &mut self.problems)),
        }
    }

    /// A policy of the root namespace applies to pods of this one.
    pub(super) fn reached(&mut self, fate: Fate) {
        if !fate.everywhere && !fate.reach.is_empty() {
            self.of_root.entry(fate.object).or_default().extend(fate.reach);
        }
    }
}

/// What was counted of all namespaces together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    all: Reach,
    of_root: BTreeMap<ObjectRef, Reach>,
}

impl Totals {
    pub(super) fn of<'a>(parts: impl Iterator<Item = &'a Findings>) -> Self {
        let mut totals = Self::default();
        for findings in parts {
            totals.all.extend(findings.all);
            for (object, reach) in &findings.of_root {
                match totals.of_root.get_mut(object) {
                    Some(total) => total.extend(*reach),
                    None => drop(totals.of_root.insert(object.clone(), *reach)),
                }
            }
        }
        totals
    }

    /// Tells a policy of the root namespace, of which that namespace itself has counted its own pods.
    pub(super) fn tell(&self, fate: &Fate, means: &str, problems: &mut Vec<Problem>) -> Told {
        let mut fate = fate.clone();
        match fate.everywhere {
            true => fate.reach = self.all,
            false => fate.reach.extend(self.of_root.get(&fate.object).copied().unwrap_or_default()),
        }
        fate.tell(means, problems)
    }
}

/// Places in a document for a person to find: the first few, and how many more.
pub(super) fn places(name: &str, indices: &[usize]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = indices.iter().take(SHOWN).map(|index| format!("{name}[{index}]")).collect();
    match indices.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
