//! Keeps our plugin in place: looks when something changed in either directory, and from time to time all the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::ready::Latch;
use mesh_daemon::{dir, drain};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::news::{Happened, News};
use super::plan::{Chain, Left};
use super::{Install, disk, plan};
use crate::metrics::chain::{Metrics, Part};

/// A change that no notification told of is met after this time.
const LOOK: Duration = Duration::from_secs(10);
/// More repairs than this within [`FIGHT`] are a fight: somebody's program puts back what it wants each time.
const REPAIRS: usize = 5;
const FIGHT: Duration = Duration::from_secs(60);
/// Between two repairs in a fight.
const BREATH: Duration = Duration::from_secs(1);

/// What a look found, once everything was put right.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    chain: Chain,
    left: Vec<Left>,
}

/// Until the stop is asked for, and never in the middle of a look.
pub async fn keep(
    install: Arc<Install>,
    (ready, seen): (watch::Sender<bool>, watch::Sender<Value>),
    first: Latch,
    metrics: Metrics,
    mut news: News,
    stop: drain::Watch,
) {
    let (mut first, mut last, mut known) = (Some(first), None::<Found>, None);
    let mut repairs = Repairs::default();
    loop {
        // Made before the look, so that what changes after it is seen.
        let mut changes = [&install.conf_dir, &install.bin_dir].map(|dir| dir::Watch::new(dir).ok());
        let of = install.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let result = look(&of, &mut known);
            (result, known)
        });
        let result = match looked.await {
            Ok((result, stamp)) => {
                known = stamp;
                result.map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("looking at it ended badly: {error}")),
        };
        let (found, wrote) = match result {
            Ok((found, binary, steps)) => {
                metrics.wrote(Part::Binary, u32::from(binary));
                metrics.wrote(Part::Chain, steps);
                (found, binary || steps > 0)
            }
            Err(error) => (Found { chain: Chain::Out(error), left: Vec::new() }, false),
        };
        let is_in = matches!(found.chain, Chain::In(_));
        let dir = install.conf_dir.display();
        if last.as_ref() != Some(&found) {
            tell(&install, &found);
        }
        let state = match &found.chain {
            Chain::In(file) => format!("in the CNI chain: {file} of {dir}"),
            Chain::Out(why) => format!("not in the CNI chain of {dir}: {why}; pods that start now are captured late"),
        };
        news.state(is_in, &state);
        // Only who was in it can have been taken out.
        let repaired = wrote && last.as_ref().is_some_and(|last| matches!(last.chain, Chain::In(_)));
        if repaired {
            tracing::warn!(%dir, "the CNI chain had been changed and was put right");
            news.tell(Happened::Repaired, &format!("the CNI chain in {dir} had been changed and was put right"));
        }
        metrics.state(is_in, found.left.len());
        if is_in && let Some(first) = first.take() {
            first.release();
        }
        seen.send_replace(shown(&install, &found.chain, &found.left));
        ready.send_if_modified(|ready| std::mem::replace(ready, is_in) != is_in);
        last = Some(found);
        if repaired && repairs.is_fight(Instant::now()) {
            let text = "somebody takes our plugin out of the CNI chain again and again; Cilium does unless cni.exclusive is false";
            tracing::warn!(%dir, "{text}");
            news.tell(Happened::Contested, text);
            tokio::time::sleep(BREATH).await;
        }
        let [conf, bin] = &mut changes;
        // Any may be dropped: the look that follows serves all.
        tokio::select! {
            biased;
            () = stop.asked() => return,
            () = changed(conf) => {}
            () = changed(bin) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Binary first: an entry whose binary is missing fails every pod of the node.
fn look(install: &Install, known: &mut Option<disk::Stamp>) -> Result<(Found, bool, u32), disk::NotDone> {
    let binary = disk::put_binary(&install.plugin, &install.bin_dir, known)?;
    let carried = disk::settle(&install.conf_dir, |files| plan::put(files, &install.entry))?;
    Ok((Found { chain: carried.plan.chain, left: carried.plan.left }, binary, carried.steps))
}

/// What whoever asks is told of it.
pub(super) fn shown(install: &Install, chain: &Chain, left: &[Left]) -> Value {
    let (file, why) = match chain {
        Chain::In(file) => (Some(file), None),
        Chain::Out(why) => (None, Some(why)),
    };
    let left: Vec<Value> = left.iter().map(|left| json!({ "file": left.name, "why": left.why })).collect();
    let dir = install.conf_dir.display().to_string();
    json!({ "directory": dir, "in_chain": file.is_some(), "file": file, "why": why, "left": left })
}

fn tell(install: &Install, found: &Found) {
    let dir = install.conf_dir.display();
    match &found.chain {
        Chain::In(file) => tracing::info!(%dir, file, "in the CNI chain"),
        Chain::Out(why) => {
            tracing::warn!(%dir, why, "not in the CNI chain: pods that start now are not captured at their start")
        }
    }
    for left in &found.left {
        tracing::warn!(%dir, file = left.name, why = left.why, "network configuration left alone");
    }
}

async fn changed(watch: &mut Option<dir::Watch>) {
    match watch {
        // One that broke is made anew by the look that follows.
        Some(watch) => drop(watch.changed().await),
        None => tokio::time::sleep(Duration::from_secs(1)).await,
    }
}

/// When it was put right last.
#[derive(Debug, Default)]
struct Repairs(VecDeque<Instant>);

impl Repairs {
    /// One more, now. Whether it is one of many.
    fn is_fight(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.len() > REPAIRS {
            self.0.pop_front();
        }
        self.0.len() == REPAIRS && self.0.front().is_some_and(|oldest| now < *oldest + FIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_writes_now_and_then_is_not_fought_with() {
        let (start, mut repairs) = (Instant::now(), Repairs::default());
        assert!((0..100).all(|n| !repairs.is_fight(start + n * Duration::from_secs(20))));
        let from = start + Duration::from_secs(3000);
        let fights: Vec<bool> = (0..6).map(|n| repairs.is_fight(from + n * Duration::from_secs(1))).collect();
        assert_eq!(fights, [false, false, false, false, true, true]);
    }
}
