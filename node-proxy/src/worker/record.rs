//! The record of one connection: filled while it is set up, closed exactly once, into the access log and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::{Identity, PodName, Reason, ServiceKey};
use prometheus::IntGauge;

use super::access_log::{AccessLog, Line};
use super::authorize::{Authorized, Grounds};
use super::connect::ConnectError;
use super::connection::{Connection, CutCause, Direction, Phase};
use super::copy::Ended;
use super::identify::Unidentified;
use super::metrics::{Labels, Metrics, Reporter, Security, Series};
use super::pods::Pod;
use super::route::NoRoute;
use super::tunnel::BadAuthority;

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

impl From<BadAuthority> for Refusal {
    fn from(error: BadAuthority) -> Self {
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
}

/// The record. Dropped without being closed (its task was cut), it closes itself as draining.
#[derive(Debug)]
pub struct Record {
    connection: Arc<Connection>,
    direction: Direction,
    sinks: Sinks,
    open: IntGauge,
    source: Option<Identity>,
    source_pod: Option<PodName>,
    target: Option<Identity>,
    workload: Option<PodName>,
    service: Option<ServiceKey>,
    endpoint: Option<SocketAddr>,
    policy: Option<String>,
    dry_run: Option<String>,
    route: &'static str,
    security: Security,
    series: Option<Arc<Series>>,
    closed: bool,
}

impl Record {
    /// Of a connection that reached a listener of `pod`.
    pub fn new(sinks: &Sinks, connection: &Arc<Connection>, pod: &Pod) -> Box<Self> {
        let mut record = Self::empty(sinks, connection, connection.direction);
        let (identity, name) = (Some(pod.identity().clone()), Some(pod.name().clone()));
        match connection.direction {
            Direction::Outbound => (record.source, record.source_pod) = (identity, name),
            Direction::Inbound | Direction::Tunnel => (record.target, record.workload) = (identity, name),
        }
        record
    }

    /// The other end's record of a connection between two pods of this node: it is seen from both ends, as any other.
    pub fn of_far_end(near: &Record, pod: &Pod) -> Box<Self> {
        let mut record = Self::empty(&near.sinks, &near.connection, Direction::Inbound);
        record.source = near.source.clone();
        record.source_pod = near.source_pod.clone();
        record.target = Some(pod.identity().clone());
        record.workload = Some(pod.name().clone());
        record.service = near.service.clone();
        record.endpoint = near.endpoint;
        record.policy = near.policy.clone();
        record.dry_run = near.dry_run.clone();
        record.route = near.route;
        record.security = near.security;
        record
    }

    fn empty(sinks: &Sinks, connection: &Arc<Connection>, direction: Direction) -> Box<Self> {
        let open = sinks.metrics.open(direction);
        open.inc();
        Box::new(Self {
            connection: connection.clone(),
            direction,
            sinks: sinks.clone(),
            open,
            source: None,
            source_pod: None,
            target: None,
            workload: None,
            service: None,
            endpoint: None,
            policy: None,
            dry_run: None,
            route: "none",
            security: Security::Plain,
            series: None,
            closed: false,
        })
    }

    /// The caller has proven who it is.
    pub fn source(&mut self, identity: Identity) {
        self.source = Some(identity);
        self.security = Security::MutualTls;
    }

    /// The service that was called.
    pub fn service(&mut self, key: &ServiceKey) {
        self.service = Some(key.clone());
    }

    /// The endpoint that is tried.
    pub fn endpoint(&mut self, address: SocketAddr, workload: Option<&PodName>, identity: Option<&Identity>) {
        self.endpoint = Some(address);
        self.workload = workload.cloned();
        self.target = identity.cloned();
    }

    /// The way it takes.
    pub fn route(&mut self, route: &'static str, security: Security) {
        self.route = route;
        self.security = security;
    }

    /// What allowed it.
    pub fn authorized(&mut self, authorized: &Authorized) {
        self.policy = authorized.policy().map(ToString::to_string);
        let would_refuse = authorized.would_refuse();
        if !would_refuse.is_empty() {
            let names: Vec<String> = would_refuse.iter().map(ToString::to_string).collect();
            self.dry_run = Some(names.join(","));
        }
        if let Grounds::Probe(_) = authorized.grounds() {
            self.route = "probe";
            self.sinks.metrics.probes.inc();
        }
    }

    /// It was set up: it counts as opened from here on. Returns the series its bytes count into.
    pub fn opened(&mut self) -> Arc<Series> {
        let labels = Labels {
            reporter: if self.direction == Direction::Outbound { Reporter::Source } else { Reporter::Destination },
            source: self.source.clone(),
            destination: self.target.clone(),
            service: self.service.clone(),
            security: self.security,
        };
        let series = self.sinks.metrics.series(&labels);
        series.opened.inc();
        self.series = Some(series.clone());
        series
    }

    /// It moved bytes and has ended.
    pub fn ended(mut self: Box<Self>, ended: &Ended) {
        self.close_ended(ended);
    }

    /// It never moved a byte.
    pub fn refused(mut self: Box<Self>, refusal: &Refusal) {
        self.close_refused(refusal);
    }

    fn close_ended(&mut self, ended: &Ended) {
        let cause = match ended {
            Ended::Done | Ended::Idle => None,
            Ended::Reset(side, error) => Some(format!("{side:?}: {error}")),
            Ended::Cut(cause) => {
                self.policy = cause.policy.as_ref().map(ToString::to_string).or(self.policy.take());
                None
            }
        };
        let reason = ended.reason();
        if let Some(reason) = reason {
            self.sinks.metrics.ended(self.direction, reason);
        }
        self.close(reason, cause);
    }

    fn close_refused(&mut self, refusal: &Refusal) {
        self.policy = refusal.policy.clone().or(self.policy.take());
        self.sinks.metrics.refused(self.direction, refusal.reason);
        self.close(Some(refusal.reason), Some(refusal.cause.clone()));
    }

    fn close(&mut self, reason: Option<Reason>, cause: Option<String>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.open.dec();
        if let Some(series) = &self.series {
            series.closed.inc();
        }
        let (sent, received) = self.connection.bytes();
        self.sinks.access.line(Line {
            started: self.connection.started,
            id: self.connection.id,
            direction: self.direction,
            client: self.connection.client.addr(),
            destination: self.connection.destination.map(|destination| destination.addr()),
            endpoint: self.endpoint,
            source: self.source.take(),
            source_pod: self.source_pod.take(),
            target: self.target.take(),
            workload: self.workload.take(),
            service: self.service.take(),
            route: self.route,
            security: self.security.as_str(),
            policy: self.policy.take(),
            dry_run: self.dry_run.take(),
            reason,
            cause,
            sent,
            received,
            phases: Phase::ALL.map(|phase| self.connection.phases().at(phase)),
            duration: self.connection.accepted.elapsed(),
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed {
            self.sinks.metrics.ended(self.direction, Reason::Draining);
            self.close(Some(Reason::Draining), Some("cut with its task".to_owned()));
        }
    }
}
