//! Which of several control planes writes statuses: the one that holds the Lease. All of them serve; nothing but writing waits for it.
//!
//! A lease is believed by our own clock since it was last seen to change, never by the times in it: clocks of nodes differ.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mesh_daemon::drain;
use mesh_kube::{Api, Backoff, Error, Method};
use prometheus::IntGauge;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// A holder that has not renewed for so long has lost it (as controller-manager: 15 s).
const LIFE: Duration = Duration::from_secs(15);
/// Between renewals.
const RENEW: Duration = Duration::from_secs(5);
/// A holder that could not renew for so long stops writing, well before anybody else may begin.
const GIVE_UP: Duration = Duration::from_secs(10);
const NAME: &str = "culvert-control-plane";

/// What is to be done about the lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours.
    Renew,
    /// Its holder has not renewed it in time, or gave it back.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// What was seen of the lease.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Its version and since when it has been that.
    version: Option<(String, Instant)>,
}

impl Seen {
    fn step(&mut self, lease: Option<&Value>, me: &str, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let text = |name: &str| lease.pointer(name).and_then(Value::as_str).unwrap_or_default();
        let version = text("/metadata/resourceVersion");
        let since = match &self.version {
            Some((seen, since)) if seen == version => *since,
            _ => {
                self.version = Some((version.to_owned(), now));
                now
            }
        };
        match text("/spec/holderIdentity") {
            holder if holder == me => Step::Renew,
            "" => Step::Take,
            _ if now >= since + LIFE => Step::Take,
            _ => Step::Wait,
        }
    }
}

/// Takes part in the election.
pub struct Lease {
    api: Api,
    namespace: String,
    me: String,
    leads: watch::Sender<bool>,
    shown: IntGauge,
}

impl Lease {
    /// Takes part under this name, which no other may have. Whether we lead is told by the receiver, and shown.
    pub fn new(api: Api, namespace: String, me: String, shown: IntGauge) -> (Self, watch::Receiver<bool>) {
        let (leads, receiver) = watch::channel(false);
        (Self { api, namespace, me, leads, shown }, receiver)
    }

    /// Until the drain is asked for; then gives it back, so that another need not wait.
    pub async fn run(self, drain: drain::Watch) {
        let mut seen = Seen::default();
        let mut renewed = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(500), RENEW);
        loop {
            let begun = Instant::now();
            let wait = match tokio::time::timeout(GIVE_UP, self.once(&mut seen)).await {
                Ok(Ok(true)) => {
                    renewed = begun;
                    backoff.worked();
                    self.tell(true);
                    RENEW
                }
                Ok(Ok(false)) => {
                    backoff.worked();
                    self.tell(false);
                    RENEW
                }
                // Another was faster: look again.
                Ok(Err(error)) if error.code() == Some(409) => backoff.failed(),
                failed => {
                    let cause = failed.map_or_else(
                        |_| "no answer".to_owned(),
                        |done| done.err().map(|e| e.to_string()).unwrap_or_default(),
                    );
                    tracing::debug!(cause, "lease cannot be renewed");
                    backoff.failed()
                }
            };
            if renewed.elapsed() >= GIVE_UP {
                self.tell(false);
            }
            tokio::select! {
                biased;
                () = drain.asked() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        if *self.leads.borrow() {
            self.tell(false);
            // If it does not work, it runs out.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.give_back()).await;
        }
    }

    /// Looks and acts: whether it is ours now.
    async fn once(&self, seen: &mut Seen) -> Result<bool, Error> {
        let lease = self.api.get(&self.path(true)).await?;
        let now = format!("{:.6}", Timestamp::now());
        match (seen.step(lease.as_ref(), &self.me, Instant::now()), lease) {
            (Step::Wait, _) => Ok(false),
            (Step::Create, _) | (_, None) => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": NAME, "namespace": self.namespace},
                    "spec": {"holderIdentity": self.me, "leaseDurationSeconds": LIFE.as_secs(), "acquireTime": now, "renewTime": now},
                });
                self.api.write(Method::Post, &self.path(false), &lease).await.map(|_| true)
            }
            (step, Some(mut lease)) => {
                let turns = lease.pointer("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0);
                let spec = &mut lease["spec"];
                spec["renewTime"] = now.clone().into();
                if step == Step::Take {
                    spec["holderIdentity"] = self.me.clone().into();
                    spec["leaseDurationSeconds"] = LIFE.as_secs().into();
                    spec["acquireTime"] = now.into();
                    spec["leaseTransitions"] = turns.saturating_add(1).into();
                }
                // With the version that was read: whoever is slower is refused.
                self.api.write(Method::Put, &self.path(true), &lease).await.map(|_| true)
            }
        }
    }

    async fn give_back(&self) -> Result<(), Error> {
        if let Some(mut lease) = self.api.get(&self.path(true)).await?
            && lease.pointer("/spec/holderIdentity").and_then(Value::as_str) == Some(&self.me)
        {
            lease["spec"]["holderIdentity"] = "".into();
            self.api.write(Method::Put, &self.path(true), &lease).await?;
        }
        Ok(())
    }

    fn tell(&self, leads: bool) {
        let changed = self.leads.send_if_modified(|now| std::mem::replace(now, leads) != leads);
        self.shown.set(leads.into());
        if changed {
            tracing::info!(leads, me = self.me, "election");
        }
    }

    fn path(&self, of_object: bool) -> String {
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        if of_object { format!("{leases}/{NAME}") } else { leases }
    }
}

#[cfg(test)]
mod tests {
    use mesh_daemon::tasks;
    use mesh_kube::fake::Fake;

    use super::*;

    fn lease(holder: &str, version: &str) -> Value {
        json!({"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder}})
    }

    #[test]
    fn a_lease_is_taken_only_from_one_who_was_seen_not_to_renew_it() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut at =
            |seconds: u64, lease: Option<Value>| seen.step(lease.as_ref(), "me", start + Duration::from_secs(seconds));
        assert_eq!(at(0, None), Step::Create);
        assert_eq!(at(1, Some(lease("me", "1"))), Step::Renew);
        assert_eq!(at(2, Some(lease("", "2"))), Step::Take);
        assert_eq!(at(3, Some(lease("other", "3"))), Step::Wait);
        assert_eq!(at(17, Some(lease("other", "3"))), Step::Wait);
        // Renewed: counted anew.
        assert_eq!(at(18, Some(lease("other", "4"))), Step::Wait);
        assert_eq!(at(32, Some(lease("other", "4"))), Step::Wait);
        assert_eq!(at(33, Some(lease("other", "4"))), Step::Take);
    }

    #[tokio::test]
    async fn of_two_one_leads_and_the_other_follows_it_when_it_stops() {
        let fake = Fake::start("127.0.0.1").await;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, fake.kubeconfig()).expect("written");
        let api = Api::connect(Some(&path)).await.expect("a client");
        let group = tasks::Group::new("test");
        let shown = || IntGauge::new("leader", "x").expect("a name");
        let (first, mut first_leads) = Lease::new(api.clone(), "culvert-system".to_owned(), "a".to_owned(), shown());
        let (second, mut second_leads) = Lease::new(api, "culvert-system".to_owned(), "b".to_owned(), shown());
        let ((stop_first, watch_first), (_stop, watch_second)) = (drain::pair(), drain::pair());
        let patience = Duration::from_secs(20);
        group.spawn("first", first.run(watch_first));
        tokio::time::timeout(patience, first_leads.wait_for(|leads| *leads)).await.expect("in time").expect("runs");
        group.spawn("second", second.run(watch_second));
        stop_first.ask();
        tokio::time::timeout(patience, second_leads.wait_for(|leads| *leads)).await.expect("in time").expect("runs");
        assert!(!*first_leads.borrow());
    }
}
