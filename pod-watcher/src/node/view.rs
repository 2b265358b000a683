//! What people see: conditions, gauges, stages' times, the admin socket's answers.

use mesh_model::PodUid;
use mesh_net::capture;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Node;
use super::entry::Entry;
use crate::enrol::{Guard, Phase};
use crate::metrics::labels::{AddStage, PodState};
use crate::sandbox::Job;
use crate::status::{Condition, Seen};

impl Entry {
    /// From what was read back.
    pub(super) fn to_condition(&self) -> Condition {
        Condition {
            pod: self.record.name.to_string(),
            static_uid: self.record.static_uid.as_ref().map(ToString::to_string),
            enrolled: self.rules == Some(capture::Stage::Redirect) && self.machine.is_served(),
            observed: Seen { rules: rules(self.rules), listeners: self.listeners },
            reason: self.said.0.clone(),
            message: match self.excluded() {
                Some(excluded) => format!("{}; {excluded}", self.said.1),
                None => self.said.1.clone(),
            },
        }
    }

    /// What is left out of capture, or why nothing is.
    fn excluded(&self) -> Option<String> {
        match &self.record.exclusions {
            Ok(none) if none.is_empty() => None,
            Ok(some) => Some(format!("not captured: {some}")),
            Err(error) => Some(format!("nothing is excluded: {error}")),
        }
    }
}

fn rules(stage: Option<capture::Stage>) -> &'static str {
    match stage {
        None => "none",
        Some(capture::Stage::Deny) => "deny",
        Some(capture::Stage::Learn) => "learn",
        Some(capture::Stage::Redirect) => "redirect",
        Some(capture::Stage::Part) => "part",
        Some(capture::Stage::Drain) => "drain",
    }
}

impl Node {
    /// An event took a pod's enrolment on: how long did the stage take that is over?
    pub(super) fn passed_stage(&mut self, uid: &PodUid, before: Phase) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let now = entry.machine.phase();
        if now == before {
            return;
        }
        let stage = match (before, now) {
            (Phase::Denying, Phase::Offered(Guard::Deny)) => Some(AddStage::Deny),
            (Phase::Offered(Guard::Deny), Phase::Listening(_)) => Some(AddStage::Ack),
            (Phase::Listening(Guard::Deny), Phase::Swapping(_)) => Some(AddStage::Listeners),
            (Phase::Swapping(Guard::Deny), Phase::Captured) => Some(AddStage::Swap),
            _ => None,
        };
        if let Some(stage) = stage {
            self.metrics.add_stage(stage, entry.stage_since.elapsed());
        }
        if matches!((before, now), (Phase::Swapping(Guard::Open), Phase::Captured)) {
            self.metrics.opt_ins.inc();
        }
        // The first stage begins with the request, which sets this itself.
        if now != Phase::Denying {
            entry.stage_since = Instant::now();
        }
    }

    pub(super) fn gauge(&self) {
        self.metrics.pods(self.pods.values().map(|entry| match entry.rules {
            None => PodState::Plain,
            Some(capture::Stage::Deny) => PodState::Denied,
            Some(capture::Stage::Redirect | capture::Stage::Part) if entry.machine.is_served() => PodState::Served,
            Some(capture::Stage::Redirect | capture::Stage::Part) => PodState::Unserved,
            Some(capture::Stage::Learn | capture::Stage::Drain) => PodState::Draining,
        }));
        self.metrics.keepers.set(i64::try_from(self.keepers.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn admin(
        &mut self,
        request: &mesh_daemon::admin::Request,
        reply: oneshot::Sender<Result<Value, String>>,
    ) {
        let answer = match (request.verb.as_str(), request.args.as_slice()) {
            ("pods", []) => Ok(self.view()),
            ("rules", [pod]) => return self.show_rules(pod, reply),
            ("chain", _) => Err("chain takes nothing".to_owned()),
            ("rules", _) => Err("rules takes one NAMESPACE/POD".to_owned()),
            (verb, _) => Err(format!("unknown verb {verb:?}; there are pods, rules and chain")),
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn view(&self) -> Value {
        let pods: Vec<Value> = self
            .pods
            .iter()
            .map(|(uid, entry)| {
                json!({
                    "pod": entry.record.name.to_string(),
                    "uid": uid.as_str(),
                    "phase": format!("{:?}", entry.machine.phase()),
                    "rules": rules(entry.rules),
                    "listeners": entry.listeners,
                    "served": entry.machine.is_served(),
                    "generation": entry.generation,
                    "addresses": entry.facts().addresses,
                    "service_account": entry.record.service_account,
                    "netns": entry.sandbox.as_ref().map(|sandbox| sandbox.id.ino),
                    "reason": entry.said.0,
                    "message": entry.said.1,
                    "excluded": entry.excluded(),
                })
            })
            .collect();
        let keepers: Vec<Value> =
            self.keepers.iter().map(|(id, keeper)| json!({ "keeper": id, "pid": keeper.pid })).collect();
        json!({ "node": self.scope.node, "addresses": self.facts.addresses, "keepers": keepers, "pods": pods })
    }

    /// Answered by the sandbox, with nothing held up meanwhile.
    fn show_rules(&mut self, pod: &str, reply: oneshot::Sender<Result<Value, String>>) {
        let entry = self.pods.values_mut().find(|entry| entry.record.name.to_string() == pod);
        let Some(sandbox) = entry.and_then(|entry| entry.sandbox.as_mut()) else {
            let _ = reply.send(Err(format!("no enrolled pod {pod} on this node; see pods")));
            return;
        };
        let (shown, answer) = oneshot::channel();
        if !sandbox.send(Job::Show(shown)) {
            let _ = reply.send(Err(format!("the netns of pod {pod} has too much to do")));
            return;
        }
        self.group.spawn("rules for a person", async move {
            let answer = match answer.await {
                Ok(Ok((text, counters))) => Ok(json!({ "rules": text, "counters": counters })),
                Ok(Err(error)) => Err(error),
                Err(_) => Err("the pod has gone".to_owned()),
            };
            let _ = reply.send(answer);
        });
    }
}
