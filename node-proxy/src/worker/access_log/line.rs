//! One line as values: what is known of a connection, and its keys in the order in which they are written.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use mesh_model::{Identity, PodName, Reason, ServiceKey};

use super::super::connection::{ConnectionId, Direction, Phase};

/// Every key there is, in order. `docs/access-log.md` says what each means.
#[cfg(test)]
pub const KEYS: [&str; 26] = [
    "time",
    "id",
    "event",
    "outcome",
    "direction",
    "client",
    "destination",
    "endpoint",
    "source_identity",
    "source_pod",
    "destination_identity",
    "workload",
    "service",
    "route",
    "security",
    "policy",
    "dry_run_denied",
    "reason",
    "cause",
    "sent",
    "received",
    "served_us",
    "judged_us",
    "connected_us",
    "first_byte_us",
    "duration_us",
];

/// How a connection came out; what samplings and filters go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It moved bytes until both its ends had ended.
    Ok,
    /// It was set up and something ended it; the reason says what.
    Ended,
    /// It was never set up; the reason says why.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 3] = [Outcome::Ok, Outcome::Ended, Outcome::Refused];

    /// The spelling in lines and flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Ended => "ended",
            Outcome::Refused => "refused",
        }
    }
}

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection was set up.
    Start,
    /// It has ended.
    End(Outcome),
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it tells of.
    pub event: Event,
    /// When it was accepted.
    pub started: SystemTime,
    /// When the line was made; the rate cap's clock.
    pub made: Instant,
    /// Shared with the other end.
    pub id: ConnectionId,
    /// Where it came in.
    pub direction: Direction,
    /// Who called.
    pub client: SocketAddr,
    /// Where to; `None` when the kernel did not say.
    pub destination: Option<SocketAddr>,
    /// The endpoint that was chosen.
    pub endpoint: Option<SocketAddr>,
    /// Proven identity of the caller.
    pub source: Option<Identity>,
    /// The calling pod, when it is of this node.
    pub source_pod: Option<PodName>,
    /// Identity of the called workload.
    pub target: Option<Identity>,
    /// The called workload.
    pub workload: Option<PodName>,
    /// The called service.
    pub service: Option<ServiceKey>,
    /// The way it took.
    pub route: &'static str,
    /// How the identities were proven.
    pub security: &'static str,
    /// The policy that allowed or refused.
    pub policy: Option<String>,
    /// Dry-run policies that would have refused it.
    pub dry_run: Option<String>,
    /// Why it was refused or ended; `None`: ran to its end.
    pub reason: Option<Reason>,
    /// The cause in words.
    pub cause: Option<String>,
    /// Bytes to the destination.
    pub sent: u64,
    /// Bytes to the client.
    pub received: u64,
    /// Microseconds from accept to each phase, in the order of [`Phase::ALL`]; `None`: not reached.
    pub phases: [Option<u64>; Phase::ALL.len()],
    /// From accept to end.
    pub duration: Duration,
}

/// A value that is to be written.
pub enum Value<'a> {
    /// May hold foreign text (`cause`): both forms escape.
    Text(&'a dyn Display),
    /// As it is.
    Number(u64),
    /// RFC 3339.
    Time(SystemTime),
}

impl Line {
    /// Gives each key that has a value, in order, without making anything of it.
    pub fn each(&self, mut put: impl FnMut(&'static str, Value<'_>)) {
        let (event, outcome) = match self.event {
            Event::Start => ("start", None),
            Event::End(outcome) => ("end", Some(outcome.as_str())),
        };
        let texts: [(_, Option<&dyn Display>); 18] = [
            ("id", Some(&self.id)),
            ("event", Some(&event)),
            ("outcome", shown(&outcome)),
            ("direction", Some(&self.direction.as_str())),
            ("client", Some(&self.client)),
            ("destination", shown(&self.destination)),
            ("endpoint", shown(&self.endpoint)),
            ("source_identity", shown(&self.source)),
            ("source_pod", shown(&self.source_pod)),
            ("destination_identity", shown(&self.target)),
            ("workload", shown(&self.workload)),
            ("service", shown(&self.service)),
            ("route", Some(&self.route)),
            ("security", Some(&self.security)),
            ("policy", shown(&self.policy)),
            ("dry_run_denied", shown(&self.dry_run)),
            ("reason", shown(&self.reason)),
            ("cause", shown(&self.cause)),
        ];
        put("time", Value::Time(self.started));
        for (key, value) in texts {
            if let Some(value) = value {
                put(key, Value::Text(value));
            }
        }
        let ended = matches!(self.event, Event::End(_));
        if ended {
            put("sent", Value::Number(self.sent));
            put("received", Value::Number(self.received));
        }
        for (phase, at) in Phase::ALL.into_iter().zip(self.phases) {
            if let Some(micros) = at {
                put(phase.key(), Value::Number(micros));
            }
        }
        if ended {
            put("duration_us", Value::Number(self.duration.as_micros().try_into().unwrap_or(u64::MAX)));
        }
    }
}

fn shown<T: Display>(value: &Option<T>) -> Option<&dyn Display> {
    value.as_ref().map(|value| value as &dyn Display)
}
