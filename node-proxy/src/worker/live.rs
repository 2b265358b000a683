//! Open connections of each pod, and judging them again.
//!
//! A connection that was judged when it began is judged again whenever the configuration changes; one that is now refused is reset.
//! The registry is per pod, so that a pod that leaves the mesh can end its own connections. What it must never do: miss a
//! connection that was judged by an older configuration and registered after the newer one had been looked at
//! ([`Ticket::judged`] looks twice).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_model::policy::{Denied, Permit, Policy, PolicyKey, judge};
use mesh_model::{Mesh, Reason, Workload};
use tokio::sync::Notify;

use super::connection::{Connection, CutCause};
use super::pods::Pod;

/// The open connections of one pod.
#[derive(Debug, Default)]
pub struct Live {
    inner: Mutex<Inner>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    // All were cut for this: whoever comes later is as well.
    cut: Option<Reason>,
    open: HashMap<u64, Entry>,
    // What the pod's connections were last judged by.
    judged_by: Option<JudgedBy>,
}

#[derive(Debug)]
struct Entry {
    connection: Arc<Connection>,
    judged: Judged,
}

/// Whether, and under which further condition, a connection is judged again.
#[derive(Clone, Debug)]
pub enum Judged {
    /// Not judged here: the caller's end of a tunnel, a probe, or traffic that leaves the mesh.
    No,
    /// Judged as the destination.
    Here,
    /// Judged as the destination, and it took the short way between two pods of this node, which stands only while no
    /// NetworkPolicy selects either of them.
    ShortWay {
        /// The calling pod.
        source: Arc<Pod>,
    },
}

/// Holds a connection in the registry; dropping it takes the connection out.
#[derive(Debug)]
#[must_use = "dropping a ticket takes the connection out of the registry"]
pub struct Ticket {
    pod: Arc<Pod>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let live = self.pod.live();
        let mut inner = live.lock();
        inner.open.remove(&self.number);
        if inner.open.is_empty() {
            // A burst leaves its table behind otherwise: one of 10,000 connections is half a megabyte.
            inner.open.shrink_to(64);
            live.emptied.notify_waiters();
        }
    }
}

impl Live {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resolves when none is open. Safe to drop half-way.
    pub async fn emptied(&self) {
        loop {
            // Registered before looking, so that an end between the two is not missed.
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// All of them, for admin.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.lock().open.values().map(|entry| entry.connection.clone()).collect()
    }

    /// Ends all of them, and each that still comes: one whose set-up was under way when the pod left.
    pub fn cut_all(&self, reason: Reason) {
        self.lock().cut = Some(reason);
        for connection in self.connections() {
            connection.cut(CutCause { reason, policy: None });
        }
    }
}

/// Registers a connection that is not judged on this node, or not yet.
pub fn enter(pod: &Arc<Pod>, connection: &Arc<Connection>) -> Ticket {
    let mut inner = pod.live().lock();
    let number = inner.next;
    inner.next += 1;
    inner.open.insert(number, Entry { connection: connection.clone(), judged: Judged::No });
    let cut = inner.cut;
    drop(inner);
    if let Some(reason) = cut {
        connection.cut(CutCause { reason, policy: None });
    }
    Ticket { pod: pod.clone(), number }
}

impl Ticket {
    /// The connection was judged by `by`, an older or the `current` configuration, and is judged again from here on: in the first
    /// case at once, since the sweep for the newer one may have passed already. If that lists a policy which has not arrived, the pod
    /// is put among those that are `waiting`.
    pub fn judged(
        &self,
        permit: &Permit,
        judged: Judged,
        by: &Arc<Mesh>,
        current: impl FnOnce() -> Arc<Mesh>,
        waiting: &Waiting,
    ) {
        let connection = {
            let mut inner = self.pod.live().lock();
            let Some(entry) = inner.open.get_mut(&self.number) else { return };
            entry.connection.permitted(permit.clone());
            entry.judged = judged.clone();
            entry.connection.clone()
        };
        let current = current();
        if Arc::ptr_eq(by, &current) {
            return;
        }
        match again(&current, &self.pod, &connection, &judged) {
            Again::Fine => {}
            Again::Refused(cause) => connection.cut(cause),
            Again::NotYet(_) => waiting.add(&self.pod),
        }
    }
}

/// Pods with a connection that waits for a listed policy: whoever judges again looks at them once more shortly. At most one of each.
#[derive(Debug, Default)]
pub struct Waiting {
    pods: Mutex<HashMap<u32, Arc<Pod>>>,
    added: Notify,
}

impl Waiting {
    /// Adds a pod.
    pub fn add(&self, pod: &Arc<Pod>) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.slot(), pod.clone());
        self.added.notify_one();
    }

    /// Resolves when one was added since it last did. Safe to drop half-way.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// Takes them out.
    pub fn take(&self) -> Vec<Arc<Pod>> {
        let pods = std::mem::take(&mut *self.pods.lock().unwrap_or_else(PoisonError::into_inner));
        pods.into_values().collect()
    }
}

/// What judging again says.
enum Again {
    Fine,
    Refused(CutCause),
    /// Something is on its way: look again shortly.
    NotYet(CutCause),
}

fn again(mesh: &Mesh, pod: &Pod, connection: &Connection, judged: &Judged) -> Again {
    let Some(permit) = connection.permit() else { return Again::Fine };
    if let Judged::ShortWay { source } = judged
        && !(source.is_unselected(mesh) && pod.is_unselected(mesh))
    {
        // The next try goes through the tunnel, where the CNI's enforcement sees it.
        return Again::Refused(CutCause { reason: Reason::PolicyChanged, policy: None });
    }
    match judge_again(mesh, pod.workload(mesh).map(Arc::as_ref), permit) {
        Ok(_) => Again::Fine,
        // The record went away: that is no new policy. The pod's end comes by the link, with its own reason.
        // Nor is it when time passes over the configuration: whoever was let in by it stays.
        Err(Denied::WorkloadUnknown | Denied::Outdated) => Again::Fine,
        Err(denied @ Denied::PolicyMissing(_)) => Again::NotYet(cause(&denied)),
        Err(denied @ (Denied::ByPolicy(_) | Denied::PolicyInvalid(_))) => Again::Refused(cause(&denied)),
    }
}

fn judge_again(mesh: &Mesh, workload: Option<&Workload>, permit: &Permit) -> Result<Permit, Denied> {
    judge(mesh, workload, permit.facts().clone())
}

fn cause(denied: &Denied) -> CutCause {
    CutCause { reason: Reason::PolicyChanged, policy: denied.policy().cloned() }
}

/// What decides about a pod's connections. Unchanged (by pointer) means that nothing has to be judged again.
#[derive(Debug)]
struct JudgedBy {
    workload: Option<Arc<Workload>>,
    policies: Result<Vec<Arc<Policy>>, PolicyKey>,
}

impl JudgedBy {
    fn of(mesh: &Mesh, pod: &Pod) -> Self {
        let workload = pod.workload(mesh).cloned();
        let policies = workload.as_ref().map_or_else(|| Ok(Vec::new()), |workload| mesh.policies_for(workload));
        Self { workload, policies }
    }

    fn is_same(&self, other: &Self) -> bool {
        let same_workload = match (&self.workload, &other.workload) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two) || one == two,
            (None, None) => true,
            _ => false,
        };
        let same_policies = match (&self.policies, &other.policies) {
            (Ok(one), Ok(two)) => one.len() == two.len() && one.iter().zip(two).all(|(a, b)| Arc::ptr_eq(a, b)),
            (Err(one), Err(two)) => one == two,
            _ => false,
        };
        same_workload && same_policies
    }
}

/// What a sweep over one pod found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections judged.
    pub judged: usize,
    /// Connections ended.
    pub cut: usize,
    /// Whether a listed policy has not arrived: the caller looks again shortly, with `last_call`.
    pub waiting: bool,
}

/// Judges the pod's connections by `mesh` when something that decides about them has changed. With `last_call`, a policy that
/// is listed and still missing refuses; without, its connections get one more chance, since list and policy travel apart.
pub fn sweep(mesh: &Mesh, pod: &Pod, last_call: bool) -> Swept {
    let now = JudgedBy::of(mesh, pod);
    let mut swept = Swept::default();
    let entries: Vec<(Arc<Connection>, Judged)> = {
        let mut inner = pod.live().lock();
        let same = inner.judged_by.as_ref().is_some_and(|before| before.is_same(&now));
        // The source's mark is not part of what is remembered of the destination: the short way is always looked at.
        let entries = inner
            .open
            .values()
            .filter(|entry| match entry.judged {
                Judged::No => false,
                Judged::Here => !same || last_call,
                Judged::ShortWay { .. } => true,
            })
            .map(|entry| (entry.connection.clone(), entry.judged.clone()))
            .collect();
        inner.judged_by = Some(now);
        entries
    };
    for (connection, judged) in entries {
        swept.judged += 1;
        let cause = match again(mesh, pod, &connection, &judged) {
            Again::Fine => continue,
            Again::NotYet(_) if !last_call => {
                swept.waiting = true;
                continue;
            }
            Again::NotYet(cause) | Again::Refused(cause) => cause,
        };
        swept.cut += 1;
        connection.cut(cause);
    }
    swept
}

#[cfg(test)]
mod tests;
