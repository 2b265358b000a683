//! The whole log with outputs of a test: what is lost, what is counted, what a push costs.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use mesh_model::{Identity, PodName, Reason, ServiceKey};

use super::super::connection::{ConnectionId, Direction};
use super::output::Sink;
use super::*;

/// A line with every field.
pub fn line() -> Line {
    Line {
        event: Event::End(Outcome::Refused),
        started: UNIX_EPOCH + Duration::from_micros(1_709_210_096_000_007),
        made: Instant::now(),
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
        dry_run: Some("shop/later".into()),
        reason: Some(Reason::PolicyDenied),
        cause: Some("far end: \"no\"\nreally".into()),
        sent: 10,
        received: 20,
        phases: [Some(10), Some(20), Some(30), Some(40)],
        duration: Duration::from_micros(1500),
    }
}

/// A reader that takes nothing while its lock is held, counts the writes, and keeps what it is given.
#[derive(Clone, Default)]
struct Reader(Arc<Mutex<(Vec<u8>, usize)>>);

impl Reader {
    fn lines(&self) -> u64 {
        self.0.lock().expect("no panic while held").0.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

impl Sink for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut read = self.0.lock().expect("no panic while held");
        read.0.extend_from_slice(bytes);
        read.1 += 1;
        Ok(bytes.len())
    }
    fn len(&self) -> Option<u64> {
        None
    }
    fn wait(&self) {}
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn started(args: &AccessLogArgs) -> (AccessLog, Writer, Reader, Counters) {
    let (reader, counters) = (Reader::default(), Counters::unregistered());
    let (log, writer) = AccessLog::start_with(args, Output::of(reader.clone()), counters.clone()).expect("thread");
    (log, writer, reader, counters)
}

fn ended(log: AccessLog, writer: Writer) {
    drop(log);
    writer.finish(Duration::from_secs(20));
}

#[test]
fn a_stuck_reader_costs_lines_that_are_counted_and_never_time() {
    let (log, writer, reader, counters) = started(&AccessLogArgs::default());
    let sent = queue::CAPACITY * 2;
    {
        let _stuck = reader.0.lock().expect("no panic while held");
        (0..sent).for_each(|_| log.line(Box::new(line())));
        assert_eq!(counters.queue_full.get(), (sent - queue::CAPACITY) as u64, "what waits is bounded exactly");
    }
    ended(log, writer);
    assert_eq!(reader.lines(), queue::CAPACITY as u64);
    assert_eq!(counters.written.get(), reader.lines());
    assert_eq!(counters.written.get() + counters.dropped(), sent as u64);
}

#[test]
fn lines_that_wait_together_share_their_writes() {
    let (log, writer, reader, _) = started(&AccessLogArgs { format: AccessLogFormat::Json, ..Default::default() });
    {
        let _stuck = reader.0.lock().expect("no panic while held");
        (0..5000).for_each(|_| log.line(Box::new(line())));
    }
    ended(log, writer);
    let (bytes, writes) = reader.0.lock().map(|read| (read.0.len(), read.1)).expect("no panic while held");
    // Each write but the first (which had taken what there was) and the last holds more than 60 KiB.
    assert!(writes <= bytes / (60 * 1024) + 4, "{writes} writes for {bytes} bytes");
}

#[test]
fn what_is_left_out_is_counted_by_its_cause_and_the_sum_is_exact() {
    let args = AccessLogArgs {
        filter: vec!["outcome=ok,refused".parse().expect("filter")],
        sample: vec!["ok=0".parse().expect("sampling")],
        rate: 1,
        burst: Some(3),
        ..Default::default()
    };
    let (log, writer, reader, counters) = started(&args);
    let made = Instant::now();
    for (count, event) in
        [(7, Event::End(Outcome::Ok)), (11, Event::End(Outcome::Ended)), (13, Event::End(Outcome::Refused))]
    {
        (0..count).for_each(|_| log.line(Box::new(Line { event, made, ..line() })));
    }
    ended(log, writer);
    assert_eq!((counters.sampled.get(), counters.rate.get(), reader.lines()), (7, 10, 3));
}

#[test]
fn a_log_that_is_off_or_whose_file_cannot_be_opened_says_so_at_start() {
    let off = AccessLogArgs { format: AccessLogFormat::Off, ..Default::default() };
    let (log, writer) = AccessLog::start(&off, Counters::unregistered()).expect("nothing to open");
    log.line(Box::new(line()));
    ended(log, writer);
    let nowhere = AccessLogArgs { file: Some("/no/such/directory/access.log".into()), ..Default::default() };
    let error = AccessLog::start(&nowhere, Counters::unregistered()).expect_err("no such directory").to_string();
    assert!(error.starts_with("--access-log-file /no/such/directory/access.log: "), "{error}");
}

#[test]
fn every_cause_is_a_label_value_of_its_own() {
    let spelled: std::collections::BTreeSet<_> = counters::Cause::ALL.map(counters::Cause::as_str).into();
    assert_eq!(spelled.len(), counters::Cause::ALL.len());
}
