//! Labels that flap. A pod comes into the mesh at once, and leaves it at once the first time it says so; one that was brought in a
//! moment ago and says "out" again is believed when it has said so for a while. So a label that flaps ends inside: policy is enforced,
//! and the rules in the pod's netns are not written a hundred times a second. Pure; time is an input.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_api::link::state_dir::Standing;
use mesh_api::manifests::Enrolment;
use mesh_model::PodUid;
use tokio::time::Instant;

use crate::source::Records;

/// How long "out" must have been said without a break by somebody who came in this short a time before. Guessed: longer than any tool
/// takes to write labels twice, and short for a person who waits.
const HOLD: Duration = Duration::from_secs(2);

/// What was made of the records before.
#[derive(Debug, Default)]
pub struct Settle {
    pods: BTreeMap<PodUid, Word>,
    namespaces: BTreeMap<String, Word>,
}

/// What one said, and what was made of it.
#[derive(Clone, Copy, Debug)]
struct Word {
    is_in: bool,
    /// When it came in after having been out; `None`: it was in when it was first seen.
    came: Option<Instant>,
    /// Since when it says "out" and is not believed.
    doubted: Option<Instant>,
    /// Whether it was doubted since it last stood.
    flaps: bool,
}

impl Word {
    fn first(is_in: bool) -> Self {
        Self { is_in, came: None, doubted: None, flaps: false }
    }

    /// Whether it is in, now that it says this; and when to look again if it is not believed yet.
    fn says(&mut self, is_in: bool, now: Instant) -> (bool, Option<Instant>) {
        match (self.is_in, is_in) {
            (false, true) => *self = Self { is_in: true, came: Some(now), doubted: None, flaps: false },
            // It took "out" back: as if it came in now, so that the next "out" is doubted too.
            (true, true) if self.doubted.take().is_some() => self.came = Some(now),
            (true, true) => self.flaps &= self.came.is_some_and(|came| now < came + HOLD),
            (true, false) => {
                let fresh = self.came.is_some_and(|came| now < came + HOLD);
                if fresh || self.doubted.is_some() {
                    let since = *self.doubted.get_or_insert(now);
                    self.flaps = true;
                    if now < since + HOLD {
                        return (true, Some(since + HOLD));
                    }
                }
                *self = Self::first(false);
            }
            (false, false) => {}
        }
        (self.is_in, None)
    }
}

impl Settle {
    /// The records as they are to be acted on. When to settle them again, though nothing changes.
    pub fn settle(&mut self, mut records: Records, before: &Records, now: Instant) -> (Records, Option<Instant>) {
        let mut again: Option<Instant> = None;
        let mut later = |at: Option<Instant>| again = [again, at].into_iter().flatten().min();
        self.pods.retain(|uid, _| records.pods.contains_key(uid));
        self.namespaces.retain(|name, _| records.namespaces.contains_key(name));
        let mut unsettled = BTreeSet::new();
        for (uid, record) in &mut records.pods {
            let says = record.enrolment.is_enrolled();
            let Some(word) = self.pods.get_mut(uid) else {
                self.pods.insert(uid.clone(), Word::first(says));
                continue;
            };
            // On its way out it keeps what it has: what it still says and hears is judged to the end, and nothing new is begun.
            if record.terminating
                && let Some(last) = before.pods.get(uid)
            {
                record.enrolment = last.enrolment;
                record.exclusions.clone_from(&last.exclusions);
                continue;
            }
            let (is_in, at) = word.says(says, now);
            later(at);
            if word.flaps {
                unsettled.insert(uid.clone());
            }
            if is_in {
                record.enrolment = Enrolment::Enrolled;
            }
        }
        for (name, standing) in &mut records.namespaces {
            if !matches!(standing, Standing::Enrolled | Standing::Plain) {
                continue;
            }
            let says = *standing == Standing::Enrolled;
            match self.namespaces.get_mut(name) {
                None => drop(self.namespaces.insert(name.clone(), Word::first(says))),
                Some(word) => {
                    let (is_in, at) = word.says(says, now);
                    later(at);
                    if is_in {
                        *standing = Standing::Enrolled;
                    }
                }
            }
        }
        records.unsettled = unsettled;
        (records, again)
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::manifests::NotEnrolled;
    use mesh_model::PodName;

    use super::*;
    use crate::source::PodRecord;

    fn records(says: bool, terminating: bool) -> Records {
        let uid = PodUid::parse("u1").expect("uid");
        let name = PodName { namespace: "shop".to_owned(), name: "cart".to_owned() };
        let enrolment = if says { Enrolment::Enrolled } else { Enrolment::Plain(NotEnrolled::NotAsked) };
        let record = PodRecord {
            uid: uid.clone(),
            static_uid: None,
            name: name.clone(),
            service_account: "default".to_owned(),
            probe_ports: Vec::new(),
            addresses: Vec::new(),
            exclusions: Ok(Default::default()),
            enrolment,
            terminating,
        };
        let standing = if says { Standing::Enrolled } else { Standing::Plain };
        Records {
            pods: [(uid.clone(), record)].into(),
            by_name: [(name, uid)].into(),
            namespaces: [("shop".to_owned(), standing)].into(),
            unsettled: BTreeSet::new(),
        }
    }

    struct Said {
        settle: Settle,
        last: Records,
        start: Instant,
    }

    impl Said {
        fn new() -> Self {
            Self { settle: Settle::default(), last: Records::default(), start: Instant::now() }
        }

        /// Says it after so many milliseconds: whether the pod is in, and its namespace.
        fn says(&mut self, at: u64, records: Records) -> (bool, bool) {
            let now = self.start + Duration::from_millis(at);
            let (settled, _) = self.settle.settle(records, &self.last, now);
            self.last = settled;
            let pod = self.last.pods.values().next().expect("the pod").enrolment.is_enrolled();
            (pod, self.last.namespaces["shop"] == Standing::Enrolled)
        }
    }

    #[test]
    fn one_word_is_believed_at_once_both_ways() {
        let mut said = Said::new();
        for (at, word) in [(0, false), (10, true), (5000, false), (5001, true), (9000, false)] {
            assert_eq!(said.says(at, records(word, false)), (word, word), "{at}");
        }
        assert!(said.last.unsettled.is_empty());
    }

    #[test]
    fn a_pod_that_was_always_in_leaves_at_its_first_word() {
        let mut said = Said::new();
        assert_eq!(said.says(0, records(true, false)), (true, true));
        assert_eq!(said.says(1, records(false, false)), (false, false));
    }

    #[test]
    fn a_label_that_flaps_ends_inside_and_moves_nothing_more_until_it_stands() {
        let mut said = Said::new();
        said.says(0, records(true, false));
        let mut changes = 0;
        let mut last = (true, true);
        for flap in 0..1000_u64 {
            let is = said.says(10 * flap, records(flap % 2 == 0, false));
            changes += u32::from(is != last);
            last = is;
        }
        // Out with the first "out", in with the next word, and there it stays.
        assert_eq!((changes, last), (2, (true, true)));
        assert_eq!(said.last.unsettled.len(), 1);
        assert_eq!(said.says(9_990 + 1999, records(false, false)), (true, true));
        assert_eq!(said.says(9_990 + 2000, records(false, false)), (false, false));
        assert!(said.last.unsettled.is_empty());
    }

    #[test]
    fn what_is_not_believed_yet_is_looked_at_again_in_time() {
        let mut said = Said::new();
        said.says(0, records(false, false));
        said.says(100, records(true, false));
        let (_, again) = said.settle.settle(records(false, false), &said.last, said.start + Duration::from_millis(200));
        assert_eq!(again, Some(said.start + Duration::from_millis(2200)));
    }

    #[test]
    fn a_pod_on_its_way_out_keeps_what_it_has() {
        let mut said = Said::new();
        said.says(0, records(true, false));
        assert!(said.says(5000, records(false, true)).0);
        let mut said = Said::new();
        said.says(0, records(false, false));
        assert!(!said.says(5000, records(true, true)).0);
    }
}
