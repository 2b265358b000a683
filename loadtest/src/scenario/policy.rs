//! A policy that denies the bench's client is written: until a new connection is refused, and until open ones have been cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Lab, wait};

use super::held::Holders;
use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::plane::{ECHO, NAMESPACE};
use crate::traffic::now;

/// Longest until a policy is in force, or gone: far above what is promised.
const FORCE: Duration = Duration::from_secs(10);
/// One attempt at a connection.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = vec![Scenario {
        name: "policy-deny".into(),
        about: "a DENY is written: until a new connection is refused, an open one is cut; it is deleted: until one is answered".into(),
        paths: Paths::Main,
        planes: Planes::Mesh,
        rounds: Sized { whole: 5, quick: 2 },
        takes: Sized { whole: Duration::from_millis(900), quick: Duration::from_millis(900) },
        sample: Box::new(one_connection),
    }];
    for (count, quick) in [(1_000, 1), (5_000, 0)] {
        all.push(Scenario {
            name: format!("cut-{count}"),
            about: format!("a DENY is written while {count} connections are open: until the last is cut"),
            paths: Paths::Main,
            planes: Planes::Mesh,
            rounds: Sized { whole: 3, quick },
            takes: Sized { whole: Duration::from_millis(2500 + count / 2), quick: Duration::from_secs(3) },
            sample: Box::new(move |cx| many_connections(cx, count as usize)),
        });
    }
    all
}

/// Denies clients everything in the namespace. Dropping it allows again, as far as that is possible.
struct Denied<'a>(&'a Lab);

const NAME: &str = "bench-deny";

impl Denied<'_> {
    /// Those of these service accounts.
    fn now<'a>(cx: &Context<'a>, accounts: &[String]) -> Result<Denied<'a>> {
        let trust = &cx.plane.lab().mesh().config().trust_domain;
        let names: Vec<String> =
            accounts.iter().map(|account| format!("{trust}/ns/{NAMESPACE}/sa/{account}")).collect();
        cx.plane.lab().apply(
            NAME,
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: {NAMESPACE}, name: {NAME}}}\n\
                 spec:\n  action: DENY\n  rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]\n",
                names.join(", ")
            ),
        )?;
        Ok(Denied(cx.plane.lab()))
    }

    fn lift(self) -> Result<()> {
        let lab = self.0;
        std::mem::forget(self);
        lab.delete(NAME)
    }
}

impl Drop for Denied<'_> {
    fn drop(&mut self) {
        let _ = self.0.delete(NAME); // on the way of another error
    }
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Tries until connections are answered, or no longer are; how long that took.
fn until_answered(to: SocketAddr, answered: bool) -> Result<Duration> {
    let start = Instant::now();
    wait::until_true("the policy to take hold", FORCE, || open(to).is_ok() == answered)?;
    Ok(start.elapsed())
}

fn one_connection(cx: &Context<'_>) -> Result<Vec<Figure>> {
    let to = cx.plane.target(cx.path.place, cx.path.family, ECHO)?;
    let client = &cx.plane.pods().client;
    let mut held = client.in_netns(|| open(to))?;
    held.set_read_timeout(Some(FORCE))?;
    let start = Instant::now();
    let denied = Denied::now(cx, &["client".to_owned()])?;
    let (refused, cut) = std::thread::scope(|scope| {
        let cut = scope.spawn(move || match held.read(&mut [0]) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                bail!("the open connection was not cut within {} s", FORCE.as_secs())
            }
            Ok(1..) => bail!("a byte that nobody sent"),
            Ok(0) | Err(_) => Ok(start.elapsed()),
        });
        client.in_netns(|| until_answered(to, false))?;
        let refused = start.elapsed();
        Ok::<_, anyhow::Error>((refused, cut.join().unwrap_or_else(|_| bail!("a thread panicked"))?))
    })?;
    denied.lift()?;
    let allowed = client.in_netns(|| until_answered(to, true))?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![
        Figure::new("refused", "ms", ms(refused)),
        Figure::new("cut", "ms", ms(cut)),
        Figure::new("allowed", "ms", ms(allowed)),
    ])
}

fn many_connections(cx: &Context<'_>, count: usize) -> Result<Vec<Figure>> {
    let holders = Holders::new(cx, count)?;
    holders.pin()?;
    let figures = cut(cx, &holders);
    holders.away()?;
    figures
}

fn cut(cx: &Context<'_>, holders: &Holders<'_>) -> Result<Vec<Figure>> {
    let held = holders.open()?;
    let written = now();
    let denied = Denied::now(cx, &holders.accounts())?;
    let report = held.report(FORCE.min(cx.left()?))?;
    let (cut, first, last) = report.cut.context("no connection was cut")?;
    ensure!(cut == holders.count() as u64, "{cut} of {} connections were cut", holders.count());
    denied.lift()?;
    let to = cx.plane.target(cx.path.place, cx.path.family, ECHO)?;
    cx.plane.pods().client.in_netns(|| until_answered(to, true))?;
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    Ok(vec![
        Figure::new("connections", "count", cut as f64),
        Figure::new("cut", "ms", ms(written, last)),
        Figure::new("cut_first", "ms", ms(written, first)),
        Figure::new("cut_span", "ms", ms(first, last)),
    ])
}
