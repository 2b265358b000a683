//! The plugin's calls: ADD waits for a record and for the enrolment, DEL is noted and answered at once.

use std::time::Duration;

use mesh_api::link::cni::{Attachment, FromWatcher, ToWatcher};
use mesh_api::link::state_dir::{MarkedVerb, Marker};
use mesh_model::{PodName, PodUid, Reason};
use mesh_net::Netns;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Node;
use super::entry::{Entry, want};
use super::timers::Due;
use crate::cni::{Call, refused};
use crate::enrol::{Event, RequestId, Want};
use crate::facts;

/// The API server tells kubelet and us at about the same time; a manifest directory is written by hand.
const RECORD: Duration = Duration::from_secs(5);

/// Where an answer goes, and since when it is waited for.
#[derive(Debug)]
pub struct Reply {
    /// When the call came.
    pub since: Instant,
    to: oneshot::Sender<FromWatcher>,
}

impl Reply {
    /// The plugin may have given up: then nobody listens.
    pub fn send(self, answer: FromWatcher) {
        let _ = self.to.send(answer);
    }
}

/// An ADD of a pod that the source does not name yet.
#[derive(Debug)]
pub struct Waiting {
    request: RequestId,
    attachment: Attachment,
    netns: Netns,
}

impl Node {
    pub(super) fn call(&mut self, call: Call) {
        let Call { since, request, netns, reply } = call;
        let reply = Reply { since, to: reply };
        match (request, netns) {
            (ToWatcher::Add(attachment), Some(netns)) => self.add(attachment, netns, reply),
            (ToWatcher::Check(attachment), Some(netns)) => reply.send(self.check(&attachment, &netns)),
            (ToWatcher::Del(attachment), _) => {
                self.del(&attachment);
                reply.send(FromWatcher::Done { enrolled: false });
                self.metrics.del_seconds.observe(since.elapsed().as_secs_f64());
            }
            (ToWatcher::Gc { valid }, _) => {
                self.gc(&valid);
                reply.send(FromWatcher::Done { enrolled: false });
            }
            (ToWatcher::Hello(_) | ToWatcher::Add(_) | ToWatcher::Check(_), _) => {
                let msg = "a request that makes no sense here".to_owned();
                reply.send(refused(7, Reason::BadRequest, msg, "update culvert-cni"));
            }
        }
    }

    fn add(&mut self, attachment: Attachment, netns: Netns, reply: Reply) {
        let pod = name(&attachment);
        if self.scope.fixed(&pod.namespace).is_some() {
            return reply.send(FromWatcher::Done { enrolled: false });
        }
        if self.kernel.is_host(netns.id()) {
            let msg = format!("pod {pod}: CNI_NETNS is the node's own network namespace");
            return reply.send(refused(
                100,
                Reason::Conflict,
                msg,
                "a pod that shares it is hostNetwork, and gets no CNI ADD",
            ));
        }
        self.look_at_addresses();
        let request = self.number();
        self.replies.insert(request, reply);
        match self.record(&attachment) {
            Some(uid) => self.admit(&uid, request, &attachment, netns),
            None => {
                tracing::debug!(%pod, "ADD waits for the pod's record");
                self.waiting.push(Waiting { request, attachment, netns });
                self.timers.arm(RECORD, Due::Waiting(request));
                // Full: as many look-ups are under way, and the watch goes on beside them.
                let _ = self.wanted.try_send(pod);
            }
        }
    }

    /// The plugin before ours may just have given the node an address (seen: `bridge`, for the first pod of a node), and the new
    /// pod's probes come from it. One answer of the kernel's.
    fn look_at_addresses(&mut self) {
        match facts::read(&self.facts.name) {
            Ok(facts) => self.node_facts(facts),
            Err(error) => tracing::warn!(%error, "addresses of the node cannot be read"),
        }
    }

    /// The record that an attachment means.
    fn record(&self, attachment: &Attachment) -> Option<PodUid> {
        self.records.meant(&name(attachment), &attachment.pod_uid).cloned()
    }

    /// A pod with a record.
    fn admit(&mut self, uid: &PodUid, request: RequestId, attachment: &Attachment, netns: Netns) {
        let Some(record) = self.records.pods.get(uid).cloned() else { return };
        if want(Some(&record)) == Want::Plain && !self.pods.contains_key(uid) {
            if let Some(reply) = self.replies.remove(&request) {
                reply.send(FromWatcher::Done { enrolled: false });
            }
            return;
        }
        if !self.pods.contains_key(uid) {
            match Entry::new(record, self.lasting_keepers()) {
                Ok(entry) => drop(self.pods.insert(uid.clone(), entry)),
                Err(error) => return self.refuse(request, &name(attachment), &format!("no random mark: {error}")),
            }
        }
        let held = self.pods.get(uid).and_then(|entry| entry.sandbox.as_ref()).map(|sandbox| sandbox.id);
        let fresh = held != Some(netns.id());
        if fresh {
            let Some(record) = self.pods.get(uid).map(|entry| entry.record.clone()) else { return };
            let opened = self.open_sandbox(&record, netns);
            let mark = super::entry::draw_mark();
            let (sandbox, mark) = match (opened, mark) {
                (Ok(sandbox), Ok(mark)) => (sandbox, mark),
                (Err(error), _) | (_, Err(error)) => {
                    return self.refuse(request, &name(attachment), &error.to_string());
                }
            };
            let Some(entry) = self.pods.get_mut(uid) else { return };
            entry.previous = entry.sandbox.replace(sandbox);
            entry.mark = mark;
            entry.containers.clear();
            entry.addresses.clear();
            entry.rules = None;
            entry.seen_alive = false;
        }
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.missed = 0;
        entry.deleted = false;
        entry.reading = false;
        entry.containers.insert((attachment.container_id.clone(), attachment.ifname.clone()));
        for address in &attachment.addresses {
            if !entry.addresses.contains(address) {
                entry.addresses.push(*address);
            }
        }
        entry.stage_since = self.replies.get(&request).map_or_else(Instant::now, |reply| reply.since);
        self.step(uid, Event::CniAdd { request, fresh });
        // Where the machine had nothing to release.
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.previous = None;
        }
    }

    fn refuse(&mut self, request: RequestId, pod: &PodName, cause: &str) {
        if let Some(reply) = self.replies.remove(&request) {
            reply.send(refused(
                11,
                Reason::Kernel,
                format!("pod {pod}: {cause}"),
                "see pod-watcher's log on this node",
            ));
        }
    }

    /// New records: who waited for one?
    pub(super) fn admit_waiting(&mut self) {
        for one in std::mem::take(&mut self.waiting) {
            match self.record(&one.attachment) {
                Some(uid) => self.admit(&uid, one.request, &one.attachment, one.netns),
                None => self.waiting.push(one),
            }
        }
    }

    pub(super) fn record_never_came(&mut self, request: RequestId) {
        let Some(at) = self.waiting.iter().position(|one| one.request == request) else { return };
        let one = self.waiting.swap_remove(at);
        let pod = name(&one.attachment);
        if let Some(reply) = self.replies.remove(&request) {
            tracing::warn!(%pod, "pod not added: no record of it came");
            let what = match self.records.by_name.get(&pod) {
                Some(uid) => {
                    format!("pod-watcher knows this name with uid {uid}, and not with uid {}", one.attachment.pod_uid)
                }
                None => format!("pod-watcher knows no such pod on node {}", self.scope.node),
            };
            let next = "the runtime tries again by itself; check that the pod is in pod-watcher's source with its uid and nodeName";
            reply.send(refused(11, Reason::NotReady, format!("pod {pod}: {what}"), next));
        }
    }

    fn check(&self, attachment: &Attachment, netns: &Netns) -> FromWatcher {
        let pod = name(attachment);
        let Some(uid) = self.record(attachment) else {
            return refused(11, Reason::NotReady, format!("pod {pod}: pod-watcher has no record of it"), "try again");
        };
        if want(self.records.pods.get(&uid)) == Want::Plain {
            return FromWatcher::Done { enrolled: false };
        }
        match self.pods.get(&uid) {
            Some(entry) if entry.sandbox.as_ref().map(|sandbox| sandbox.id) != Some(netns.id()) => refused(
                11,
                Reason::Conflict,
                format!("pod {pod}: another network namespace is captured"),
                "add the pod again",
            ),
            Some(entry) if entry.machine.is_served() => FromWatcher::Done { enrolled: true },
            Some(entry) => {
                refused(11, Reason::NotReady, format!("pod {pod}: {}", entry.said.1), "see the pod's events")
            }
            None => refused(11, Reason::NotReady, format!("pod {pod}: not captured"), "add the pod again"),
        }
    }

    fn del(&mut self, attachment: &Attachment) {
        let (waiting, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|one| one.attachment.container_id == attachment.container_id);
        self.waiting = rest;
        let waiting: Vec<Waiting> = waiting;
        for one in waiting {
            self.refuse(one.request, &name(&one.attachment), "the container was deleted meanwhile");
        }
        let key = (attachment.container_id.clone(), attachment.ifname.clone());
        let pod = name(attachment);
        let by_container =
            self.pods.iter().find(|(_, entry)| entry.containers.contains(&key)).map(|(uid, _)| uid.clone());
        if let Some(uid) = by_container {
            let Some(entry) = self.pods.get_mut(&uid) else { return };
            entry.containers.remove(&key);
            if entry.containers.is_empty() {
                self.step(&uid, Event::CniDel);
            }
            return;
        }
        // A pod from before us, whose containers we do not know: runtimes also delete long-dead sandboxes of pods that live, so
        // this counts only once no process is left.
        let unknown = self.pods.iter_mut().find(|(uid, entry)| {
            let named = entry.record.static_uid.as_ref().is_some_and(|named| named.as_str() == attachment.pod_uid);
            let same = if attachment.pod_uid.is_empty() || named {
                entry.record.name == pod
            } else {
                uid.as_str() == attachment.pod_uid
            };
            same && entry.containers.is_empty()
        });
        if let Some((_, entry)) = unknown {
            entry.deleted = true;
            self.look.notify_one();
        }
    }

    fn gc(&mut self, valid: &[(String, String)]) {
        let gone: Vec<(PodUid, (String, String))> = self
            .pods
            .iter()
            .flat_map(|(uid, entry)| entry.containers.iter().map(move |key| (uid.clone(), key.clone())))
            .filter(|(_, key)| !valid.contains(key))
            .collect();
        for (uid, key) in gone {
            let Some(entry) = self.pods.get_mut(&uid) else { continue };
            tracing::info!(pod = %entry.record.name, %uid, container = key.0, "attachment is no longer valid (CNI GC)");
            entry.containers.remove(&key);
            if entry.containers.is_empty() {
                self.step(&uid, Event::CniDel);
            }
        }
    }

    pub(super) fn marker(&mut self, marker: Marker) {
        let pod = name(&marker.attachment);
        tracing::info!(%pod, verb = ?marker.verb, "marker of the CNI plugin worked off");
        match marker.verb {
            // If it is ours after all, the scan finds it as a running pod.
            MarkedVerb::Add => self.look.notify_one(),
            MarkedVerb::Del => self.del(&marker.attachment),
        }
    }
}

fn name(attachment: &Attachment) -> PodName {
    PodName { namespace: attachment.pod_namespace.clone(), name: attachment.pod_name.clone() }
}
