//! The record of one connection: filled while it is set up, closed exactly once, into the access log and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::{Identity, PodName, Reason, ServiceKey};
use tokio::sync::watch;

use super::access_log::{AccessLog, Event, Line, Outcome};
use super::authorize::{Authorized, Grounds};
use super::connect::ConnectError;
use super::connection::{Connection, CutCause, Direction, Phase};
use super::copy::Ended;
use super::identify::Unidentified;
use super::metrics::{self, Far, Meter, Metrics, Reporter, Scope, Security, Tap};
use super::pods::Pod;
use super::route::NoRoute;
use super::tunnel::BadConnect;
use super::xds::Published;

/// A connection that was refused: the one reason (invariant 7), the policy that said no, the cause in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For metric, log and wire.
    pub reason: Reason,
    /// The policy, as the end that judged names it.
    pub policy: Option<String>,
    /// For a person.
    pub cause: String,
}

impl Refusal {
    /// Of a reason that says it all.
    pub fn of(reason: Reason, cause: impl Into<String>) -> Self {
        Self { reason, policy: None, cause: cause.into() }
    }
}

impl From<Unidentified> for Refusal {
    fn from(error: Unidentified) -> Self {
        Self::of(error.reason(), error.to_string())
    }
}

impl From<NoRoute> for Refusal {
    fn from(error: NoRoute) -> Self {
        Self::of(error.reason(), error.to_string())
    }
}

impl From<BadConnect> for Refusal {
    fn from(error: BadConnect) -> Self {
        Self::of(Reason::BadRequest, error.to_string())
    }
}

impl From<mesh_model::policy::Denied> for Refusal {
    fn from(denied: mesh_model::policy::Denied) -> Self {
        Self { reason: denied.reason(), policy: denied.policy().map(ToString::to_string), cause: denied.to_string() }
    }
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        Self { reason: error.reason(), policy: error.policy(), cause: error.to_string() }
    }
}

impl From<CutCause> for Refusal {
    fn from(cause: CutCause) -> Self {
        let policy = cause.policy.map(|key| key.to_string());
        Self { reason: cause.reason, policy, cause: "ended while it was being set up".to_owned() }
    }
}

/// Where records go.
#[derive(Clone, Debug)]
pub struct Sinks {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Lines.
    pub access: AccessLog,
    /// What the mesh says of both ends, for their names in metrics.
    pub published: watch::Receiver<Arc<Published>>,
    /// This node.
    pub node: Arc<str>,
}

/// What metrics call a connection.
struct Names {
    own: metrics::End,
    far: Far,
    scope: Scope,
}

/// The record. Dropped without being closed (its task was cut), it closes itself as draining.
#[derive(Debug)]
pub struct Record {
    connection: Arc<Connection>,
    sinks: Sinks,
    meter: Arc<Meter>,
    security: Security,
    opened: bool,
    tap: Option<Arc<Tap>>,
    // What is known so far, in the very box that goes to the access log; `None` once closed.
    line: Option<Box<Line>>,
}

impl Record {
    /// Of a connection that reached a listener of `pod`.
    pub fn new(sinks: &Sinks, connection: &Arc<Connection>, pod: &Pod) -> Self {
        let mut line = blank(connection, connection.direction);
        let (identity, name) = (Some(pod.identity().clone()), Some(pod.name().clone()));
        match connection.direction {
            Direction::Outbound => (line.source, line.source_pod) = (identity, name),
            Direction::Inbound | Direction::Tunnel => (line.target, line.workload) = (identity, name),
        }
        Self::of(sinks, connection, pod, Security::Plain, line)
    }

    /// The other end's record of a connection between two pods of this node: it is seen from both ends, as any other.
    pub fn of_far_end(near: &Record, pod: &Pod) -> Self {
        let mut line = blank(&near.connection, Direction::Inbound);
        if let Some(near) = &near.line {
            line.source = near.source.clone();
            line.source_pod = near.source_pod.clone();
            line.service = near.service.clone();
            line.endpoint = near.endpoint;
            line.policy = near.policy.clone();
            line.dry_run = near.dry_run.clone();
            line.route = near.route;
        }
        line.target = Some(pod.identity().clone());
        line.workload = Some(pod.name().clone());
        Self::of(&near.sinks, &near.connection, pod, near.security, line)
    }

    fn of(sinks: &Sinks, connection: &Arc<Connection>, pod: &Pod, security: Security, line: Box<Line>) -> Self {
        sinks.metrics.events().begun(line.direction);
        Self {
            connection: connection.clone(),
            sinks: sinks.clone(),
            meter: pod.meter().clone(),
            security,
            opened: false,
            tap: None,
            line: Some(line),
        }
    }

    /// Learns something; a record that is closed learns nothing more.
    fn learn(&mut self, what: impl FnOnce(&mut Line)) {
        if let Some(line) = &mut self.line {
            what(line);
        }
    }

    /// The caller has proven who it is.
    pub fn source(&mut self, identity: Identity) {
        self.learn(|line| line.source = Some(identity));
        self.security = Security::MutualTls;
    }

    /// The service that was called.
    pub fn service(&mut self, key: &ServiceKey) {
        self.learn(|line| line.service = Some(key.clone()));
    }

    /// The endpoint that is tried.
    pub fn endpoint(&mut self, address: SocketAddr, workload: Option<&PodName>, identity: Option<&Identity>) {
        self.learn(|line| {
            line.endpoint = Some(address);
            line.workload = workload.cloned();
            line.target = identity.cloned();
        });
    }

    /// The way it takes.
    pub fn route(&mut self, route: &'static str, security: Security) {
        self.learn(|line| line.route = route);
        self.security = security;
    }

    /// What allowed it.
    pub fn authorized(&mut self, authorized: &Authorized) {
        let probe = matches!(authorized.grounds(), Grounds::Probe(_));
        self.learn(|line| {
            line.policy = authorized.policy().map(ToString::to_string);
            let would_refuse = authorized.would_refuse();
            if !would_refuse.is_empty() {
                let names: Vec<String> = would_refuse.iter().map(ToString::to_string).collect();
                line.dry_run = Some(names.join(","));
            }
            if probe {
                line.route = "probe";
            }
        });
        if probe {
            self.sinks.metrics.plain.probes.inc();
        }
    }

    /// It was set up: it counts as opened from here on. Returns where its bytes are counted, if they are.
    pub fn opened(&mut self) -> Option<Arc<Tap>> {
        self.opened = true;
        if self.sinks.metrics.of_connections()
            && let Some(line) = self.line.as_deref()
        {
            let Names { own, far, scope } = self.names(line, None);
            self.tap = self.sinks.metrics.opened(&self.meter, own, far, scope).map(Arc::new);
        }
        if self.sinks.access.wants_starts()
            && let Some(line) = &self.line
        {
            let mut line = line.clone();
            line.security = self.security.as_str();
            self.finished(&mut line);
            self.sinks.access.line(line);
        }
        self.tap.clone()
    }

    /// What metrics call both ends.
    fn names(&self, line: &Line, reason: Option<Reason>) -> Names {
        let mesh = self.sinks.published.borrow().mesh.clone();
        let record_of = |pod: &Option<PodName>| pod.as_ref().and_then(|pod| mesh.workload_of_pod(pod)).cloned();
        let is_source = line.direction == Direction::Outbound;
        let (own, far) = if is_source {
            let at_endpoint = || line.endpoint.and_then(|endpoint| mesh.workload_at(endpoint.ip())).cloned();
            (record_of(&line.source_pod), record_of(&line.workload).or_else(at_endpoint))
        } else {
            // The caller's record is found by its address; where it has proven an identity, the record must be of that one.
            let at_client = mesh.workload_at(line.client.ip());
            let far = at_client.filter(|far| line.source.is_none() || far.identity().ok() == line.source);
            (record_of(&line.workload), far.cloned())
        };
        let scope = Scope::between(&self.sinks.node, own.as_deref(), far.as_deref());
        let (own_identity, far_identity) =
            if is_source { (&line.source, &line.target) } else { (&line.target, &line.source) };
        Names {
            own: metrics::End { workload: own, identity: own_identity.clone() },
            far: Far {
                reporter: if is_source { Reporter::Source } else { Reporter::Destination },
                end: metrics::End { workload: far, identity: far_identity.clone() },
                service: line.service.clone(),
                security: self.security,
                flags: reason.into(),
            },
            scope,
        }
    }

    /// It moved bytes and has ended.
    pub fn ended(mut self, ended: &Ended) {
        self.close_ended(ended);
    }

    /// It never moved a byte.
    pub fn refused(mut self, refusal: &Refusal) {
        self.close_refused(refusal);
    }

    fn close_ended(&mut self, ended: &Ended) {
        let cause = match ended {
            Ended::Done | Ended::Idle => None,
            Ended::Reset(side, error) => Some(format!("{side:?}: {error}")),
            Ended::Cut(cause) => {
                if let Some(policy) = &cause.policy {
                    self.learn(|line| line.policy = Some(policy.to_string()));
                }
                None
            }
        };
        match ended.reason() {
            Some(reason) => self.ended_for(reason, cause),
            None => self.close(Outcome::Ok, None, cause),
        }
    }

    fn ended_for(&mut self, reason: Reason, cause: Option<String>) {
        if let Some(line) = &self.line {
            self.sinks.metrics.events().ended(line.direction, reason);
        }
        self.close(Outcome::Ended, Some(reason), cause);
    }

    fn close_refused(&mut self, refusal: &Refusal) {
        if let Some(policy) = &refusal.policy {
            self.learn(|line| line.policy = Some(policy.clone()));
        }
        if let Some(line) = &self.line {
            self.sinks.metrics.events().refused(line.direction, refusal.reason);
            if self.sinks.metrics.of_connections() {
                let Names { own, far, .. } = self.names(line, Some(refusal.reason));
                self.sinks.metrics.failed(&self.meter, &own, far);
            }
        }
        self.close(Outcome::Refused, Some(refusal.reason), Some(refusal.cause.clone()));
    }

    fn close(&mut self, outcome: Outcome, reason: Option<Reason>, cause: Option<String>) {
        let Some(mut line) = self.line.take() else { return };
        let metrics = &self.sinks.metrics;
        metrics.events().done(line.direction);
        if let Some(tap) = &self.tap {
            metrics.closed(tap, reason);
            // The other end's record of a connection of this node shares the connection, whose first byte was one.
            if line.direction == self.connection.direction
                && let Some(micros) = self.connection.phases().at(Phase::FirstByte)
            {
                metrics.events().first_byte(line.direction, Duration::from_micros(micros));
            }
        }
        line.event = Event::End(outcome);
        line.security = self.security.as_str();
        (line.reason, line.cause) = (reason, cause);
        self.finished(&mut line);
        self.sinks.access.line(line);
    }

    /// What is only known when a line is made.
    fn finished(&self, line: &mut Line) {
        (line.sent, line.received) = self.connection.bytes();
        line.phases = Phase::ALL.map(|phase| self.connection.phases().at(phase));
        line.made = Instant::now();
        line.duration = line.made.saturating_duration_since(self.connection.accepted);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let cause = "cut with its task";
        if self.opened {
            self.ended_for(Reason::Draining, Some(cause.to_owned()));
        } else {
            self.close_refused(&Refusal::of(Reason::Draining, cause));
        }
    }
}

/// What is known of a connection before anything is.
fn blank(connection: &Connection, direction: Direction) -> Box<Line> {
    Box::new(Line {
        event: Event::Start,
        started: connection.started,
        made: connection.accepted,
        id: connection.id,
        direction,
        client: connection.client.addr(),
        destination: connection.destination.map(|destination| destination.addr()),
        endpoint: None,
        source: None,
        source_pod: None,
        target: None,
        workload: None,
        service: None,
        route: "none",
        security: Security::Plain.as_str(),
        policy: None,
        dry_run: None,
        reason: None,
        cause: None,
        sent: 0,
        received: 0,
        phases: [None; Phase::ALL.len()],
        duration: Duration::ZERO,
    })
}
