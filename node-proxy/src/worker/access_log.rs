//! The access log: one line per connection, when it has ended, on standard output.
//!
//! Written by a thread of its own from a bounded queue: a slow reader of the log loses lines (counted), never holds up a connection.
//! Text and JSON carry the same keys in the same order.

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::{Identity, PodName, Reason, ServiceKey};
use prometheus::IntCounter;

use super::args::AccessLogFormat;
use super::connection::{ConnectionId, Direction, Phase};

/// Lines that may wait: about two seconds of 4,000 connections per second.
const QUEUE: usize = 8192;

/// What is known of a connection at its end.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was accepted.
    pub started: SystemTime,
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

impl Line {
    /// Key and value of each field that has one. Values may hold foreign text (`cause`): both forms escape.
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("time", Value::Text(timestamp(self.started))),
            ("id", Value::Text(self.id.to_string())),
            ("direction", Value::Text(self.direction.as_str().to_owned())),
            ("client", Value::Text(self.client.to_string())),
        ];
        let mut text = |key, value: Option<String>| {
            if let Some(value) = value {
                fields.push((key, Value::Text(value)));
            }
        };
        text("destination", self.destination.map(|addr| addr.to_string()));
        text("endpoint", self.endpoint.map(|addr| addr.to_string()));
        text("source_identity", self.source.as_ref().map(Identity::to_string));
        text("source_pod", self.source_pod.as_ref().map(PodName::to_string));
        text("destination_identity", self.target.as_ref().map(Identity::to_string));
        text("workload", self.workload.as_ref().map(PodName::to_string));
        text("service", self.service.as_ref().map(ServiceKey::to_string));
        text("route", Some(self.route.to_owned()));
        text("security", Some(self.security.to_owned()));
        text("policy", self.policy.clone());
        text("dry_run_denied", self.dry_run.clone());
        text("reason", self.reason.map(|reason| reason.to_string()));
        text("cause", self.cause.clone());
        fields.push(("sent", Value::Number(self.sent)));
        fields.push(("received", Value::Number(self.received)));
        for (phase, at) in Phase::ALL.into_iter().zip(self.phases) {
            fields.extend(at.map(|micros| (phase.key(), Value::Number(micros))));
        }
        fields.push(("duration_us", Value::Number(self.duration.as_micros().try_into().unwrap_or(u64::MAX))));
        fields
    }

    fn render(&self, format: AccessLogFormat, out: &mut String) {
        match format {
            AccessLogFormat::Off => {}
            AccessLogFormat::Text => {
                out.push_str("access");
                for (key, value) in self.fields() {
                    // Writing to a String cannot fail.
                    let _ = match value {
                        Value::Number(number) => write!(out, " {key}={number}"),
                        Value::Text(text) if text.bytes().all(is_plain) => write!(out, " {key}={text}"),
                        Value::Text(text) => write!(out, " {key}={}", serde_json::Value::String(text)),
                    };
                }
                out.push('\n');
            }
            AccessLogFormat::Json => {
                out.push_str("{\"log\":\"access\"");
                for (key, value) in self.fields() {
                    let _ = match value {
                        Value::Number(number) => write!(out, ",\"{key}\":{number}"),
                        Value::Text(text) => write!(out, ",\"{key}\":{}", serde_json::Value::String(text)),
                    };
                }
                out.push_str("}\n");
            }
        }
    }
}

enum Value {
    Text(String),
    Number(u64),
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'
}

/// Where lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Box<Line>>>,
    dropped: IntCounter,
}

/// The writing thread; waited for at the end of the process so that the last lines are out.
#[derive(Debug)]
pub struct Writer(Option<Receiver<()>>);

impl AccessLog {
    /// Starts the writer. `dropped` counts lines that found the queue full.
    pub fn start(
        format: AccessLogFormat,
        out: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> std::io::Result<(Self, Writer)> {
        if format == AccessLogFormat::Off {
            return Ok((Self { queue: None, dropped }, Writer(None)));
        }
        let (queue, lines) = sync_channel(QUEUE);
        let (done, ended) = sync_channel(1);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            write(format, &lines, out);
            drop(done);
        })?;
        Ok((Self { queue: Some(queue), dropped }, Writer(Some(ended))))
    }

    /// A log whose lines a test takes.
    #[cfg(test)]
    pub fn captured() -> (Self, Receiver<Box<Line>>) {
        let (queue, lines) = sync_channel(QUEUE);
        (Self { queue: Some(queue), dropped: IntCounter::new("dropped", "test").expect("constant name") }, lines)
    }

    /// Hands a line over; never waits.
    pub fn line(&self, line: Line) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(Box::new(line)) {
            self.dropped.inc();
        }
    }
}

impl Writer {
    /// Waits until every line is written, up to the deadline: a reader that stands still must not keep the process alive. All
    /// [`AccessLog`]s must have been dropped, else this waits for them.
    pub fn finish(self, deadline: Duration) {
        let Some(ended) = self.0 else { return };
        // Nothing is ever sent: the thread drops its sender when it has ended.
        if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(deadline) {
            tracing::warn!("the access log's reader stands still; its last lines are lost");
        }
    }
}

fn write(format: AccessLogFormat, lines: &Receiver<Box<Line>>, mut out: impl Write) {
    let mut text = String::with_capacity(64 * 1024);
    let mut broken = false;
    while let Ok(line) = lines.recv() {
        text.clear();
        line.render(format, &mut text);
        // One write for all that wait: at load, a system call per 64 KiB instead of per connection.
        while text.len() < 60 * 1024
            && let Ok(line) = lines.try_recv()
        {
            line.render(format, &mut text);
        }
        let result = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if let Err(error) = result
            && !std::mem::replace(&mut broken, true)
        {
            tracing::warn!(%error, "the access log cannot be written; lines are lost from here on");
        }
    }
}

/// RFC 3339 in UTC with microseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Civil date from days since 1970, with years that start in March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn line() -> Line {
        Line {
            started: UNIX_EPOCH + Duration::from_micros(1_709_210_096_000_007),
            id: ConnectionId::of_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("id"),
            direction: Direction::Outbound,
            client: ([198, 18, 1, 5], 40000).into(),
            destination: Some(([198, 18, 128, 9], 80).into()),
            endpoint: Some(([198, 18, 2, 7], 8080).into()),
            source: Identity::parse("spiffe://cluster.local/ns/shop/sa/web").ok(),
            source_pod: Some(PodName { namespace: "shop".into(), name: "web-0".into() }),
            target: Identity::parse("spiffe://cluster.local/ns/shop/sa/cart").ok(),
            workload: Some(PodName { namespace: "shop".into(), name: "cart-1".into() }),
            service: Some(ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() }),
            route: "tunnel",
            security: "mutual_tls",
            policy: Some("shop/only-web".into()),
            dry_run: None,
            reason: Some(Reason::PolicyDenied),
            cause: Some("far end: \"no\"\nreally".into()),
            sent: 10,
            received: 20,
            phases: [Some(10), Some(20), None, None],
            duration: Duration::from_micros(1500),
        }
    }

    #[test]
    fn text_and_json_carry_the_same_and_stay_on_one_line() {
        let mut text = String::new();
        line().render(AccessLogFormat::Text, &mut text);
        assert_eq!(
            text,
            "access time=2024-02-29T12:34:56.000007Z id=4bf92f3577b34da6a3ce929d0e0e4736 direction=outbound \
             client=198.18.1.5:40000 destination=198.18.128.9:80 endpoint=198.18.2.7:8080 \
             source_identity=spiffe://cluster.local/ns/shop/sa/web source_pod=shop/web-0 \
             destination_identity=spiffe://cluster.local/ns/shop/sa/cart workload=shop/cart-1 \
             service=shop/cart.shop.svc.cluster.local route=tunnel security=mutual_tls policy=shop/only-web \
             reason=PolicyDenied cause=\"far end: \\\"no\\\"\\nreally\" sent=10 received=20 served_us=10 judged_us=20 duration_us=1500\n"
        );
        let mut json = String::new();
        line().render(AccessLogFormat::Json, &mut json);
        let value: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
        assert_eq!(value["policy"], "shop/only-web");
        assert_eq!(value["cause"], "far end: \"no\"\nreally");
        assert_eq!(value["duration_us"], 1500);
        assert_eq!(json.matches('\n').count(), 1);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    /// A reader that blocks until told otherwise, then keeps what it is given.
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic while held").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_that_are_counted_and_never_time() {
        let dropped = IntCounter::new("dropped", "test").expect("name");
        let out = Arc::new(Mutex::new(Vec::new()));
        let (log, writer) =
            AccessLog::start(AccessLogFormat::Text, Slow(out.clone()), dropped.clone()).expect("thread");
        let sent = QUEUE * 2;
        {
            let _stuck = out.lock().expect("no panic while held");
            (0..sent).for_each(|_| log.line(line()));
        }
        drop(log);
        writer.finish(Duration::from_secs(20));
        let written = out.lock().expect("no panic while held").iter().filter(|b| **b == b'\n').count();
        assert!(dropped.get() > 0);
        assert_eq!(written as u64 + dropped.get(), sent as u64);
    }
}
