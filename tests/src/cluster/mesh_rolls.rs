//! node-proxy is replaced on every node, again and again, while pods open connections at a steady rate: none is refused, none ends
//! before its first byte.
//!
//! On two cores a rolling and this rate may together be more than there is: callers that are late ask as fast as they can, and no rolling
//! is over before its share of the attempts was made. What rate that came to is printed.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::wait;

use crate::shop::{Member, captured, dial, meshed, start};
use crate::support::figure;

/// The issue's own figures.
const ROLLINGS: usize = 10;
const RATE: u32 = 300;
/// What a rolling takes where there is room for both: for so long each pod asks at this rate, or as many times in a longer one.
const ROLLING: Duration = Duration::from_secs(15);
/// By then the attempts that belong to a rolling were made.
const MADE: Duration = Duration::from_secs(120);
/// Connections that stay open until they are cut, of each pod to each address.
const KEPT: usize = 5;

/// What came of the attempts.
#[derive(Default)]
struct Met {
    answered: u64,
    /// How the others ended, with one example each.
    failed: BTreeMap<String, (u64, String)>,
    slowest: Duration,
    /// Long-lived connections that ended.
    cut: u64,
}

impl Met {
    fn tried(&self) -> u64 {
        self.answered + self.failed.values().map(|(count, _)| count).sum::<u64>()
    }

    fn note(&mut self, to: SocketAddr, at: Duration, took: Duration, met: io::Result<()>) {
        self.slowest = self.slowest.max(took);
        match met {
            Ok(()) => self.answered += 1,
            Err(error) => {
                let example = || (0, format!("{to} after {:.1} s, in {took:?}: {error}", at.as_secs_f64()));
                self.failed.entry(format!("{:?}", error.kind())).or_insert_with(example).0 += 1;
            }
        }
    }
}

/// A byte there and back on a connection that is there.
fn byte(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Attempts at `every`, by the clock and not by the answers, and [`KEPT`] long-lived connections, until `over`.
fn attempts(to: SocketAddr, begun: Instant, every: Duration, over: &AtomicBool, met: &Mutex<Met>) {
    let mut kept: VecDeque<TcpStream> = VecDeque::new();
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        if let Some(early) = (every * n).checked_sub(begun.elapsed()) {
            std::thread::park_timeout(early);
        }
        let at = Instant::now();
        let answered = dial(to).and_then(|stream| byte(&stream).map(|()| stream));
        let took = at.elapsed();
        // The long-lived ones have their turns.
        let old = kept.pop_front().map(|old| byte(&old).map(|()| old));
        let mut met = met.lock().expect("no panic while held");
        met.cut += u64::from(matches!(old, Some(Err(_))));
        kept.extend(old.and_then(Result::ok));
        met.note(
            to,
            begun.elapsed(),
            took,
            answered.map(|stream| {
                if kept.len() < KEPT {
                    kept.push_back(stream);
                }
            }),
        );
    }
}

/// How many attempts `callers` make during a rolling, at least.
fn share(callers: usize) -> u64 {
    u64::from(RATE) * ROLLING.as_secs() * callers as u64
}

/// Waits until `callers` made the attempts that belong to so many rollings.
fn made(rollings: usize, callers: usize, met: &Mutex<Met>) -> Result<()> {
    let due = share(callers) * rollings as u64;
    let mut tried = 0;
    wait::until_true("the attempts of a rolling to be made", MADE, || {
        tried = met.lock().expect("no panic while held").tried();
        tried >= due
    })
    .with_context(|| format!("{tried} of {due} made"))
}

/// Replaces node-proxy on every node; returns when that is over.
fn roll(cluster: &Cluster) -> Result<()> {
    let set = "daemonset/culvert-node-proxy";
    cluster.kubectl(&["rollout", "restart", set, "-n", NAMESPACE])?;
    let done = cluster.kubectl(&["rollout", "status", set, "-n", NAMESPACE, "--timeout=120s"]);
    done.map(drop)
        .with_context(|| cluster.kubectl(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default())
}

#[test]
fn no_connection_is_refused_or_ends_before_its_first_byte_while_node_proxy_is_replaced() -> Result<()> {
    let (cluster, _) = meshed("kube-rolls", true)?;
    let callers = [start(&cluster, "shop", "cart-1", 1)?, start(&cluster, "shop", "cart-2", 2)?];
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    captured(&cluster, &[&callers[0], &callers[1], &webs[0], &webs[1]], true)?;
    let targets: Vec<SocketAddr> = webs.iter().flat_map(Member::echo).collect();
    let every = Duration::from_secs(1) * u32::try_from(targets.len())? / RATE;
    let (over, met) = (AtomicBool::new(false), Mutex::new(Met::default()));
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let pairs = callers.iter().flat_map(|from| targets.iter().map(move |to| (from, *to)));
        let (over, met) = (&over, &met);
        let talk = |(from, to): (&Member, SocketAddr)| {
            from.inside(|| {
                attempts(to, begun, every, over, met);
                Ok(())
            })
        };
        let threads: Vec<_> = pairs.map(|pair| scope.spawn(move || talk(pair))).collect();
        let rolled = (1..=ROLLINGS).try_for_each(|n| {
            roll(&cluster).and_then(|()| made(n, callers.len(), met)).with_context(|| format!("rolling {n}"))
        });
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))?;
        rolled
    })?;
    let took = begun.elapsed().as_secs_f64();
    let met = met.into_inner().expect("no panic while held");
    let tried = met.tried();
    let failed = tried - met.answered;
    let rate = tried as f64 / took / callers.len() as f64;
    figure(
        "failed while node-proxy was replaced",
        failed,
        "connections",
        &format!("of {tried}, {ROLLINGS} rollings of 2 nodes in {took:.0} s"),
    );
    figure(
        "connections",
        format!("{rate:.0}"),
        "per second and pod",
        &format!("aim {RATE}; slowest answer {:?}", met.slowest),
    );
    figure("long-lived connections cut", met.cut, "connections", "at the end of their worker's drain");
    ensure!(failed == 0, "{:#?}", met.failed);
    ensure!(met.cut > 0, "no long-lived connection was there to be cut");
    Ok(())
}
