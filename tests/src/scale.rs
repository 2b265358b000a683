//! Two hundred pods on one node: what each costs, how long the node's proxy is away when it is killed, and that nothing of them
//! stays when they are gone, also when they went while pod-watcher was down.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pid, Pod, PodHandle, wait};

use crate::restart::longest_gap;
use crate::support::{CHANGE, at, figure, mesh};

const PODS: usize = 200;
/// Pods made at a time: kubelet too starts several.
const AT_ONCE: usize = 4;
/// How long memory has to come back.
const AWAY: Duration = Duration::from_secs(30);

/// The mesh's processes on node 1.
fn processes(lab: &Lab) -> Result<[(&'static str, Pid); 3]> {
    let mesh = lab.mesh();
    Ok([("pod-watcher", mesh.watcher(1).id()), ("keeper", mesh.keeper(1).id()), ("worker", mesh.worker_child(1)?)])
}

fn rss(pid: &Pid) -> Result<u64> {
    let text = pid.status("VmRSS").context("memory of a living process")?;
    Ok(text.trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// What must be the same after pods have come and gone; descriptors by process and kind.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    facts: BTreeMap<&'static str, String>,
    descriptors: BTreeMap<String, usize>,
}

impl Node {
    fn now(lab: &Lab) -> Result<Node> {
        let node = lab.node(1);
        // By kind: one that is lost and one that is gained must not look like nothing.
        let mut descriptors = BTreeMap::new();
        for (name, pid) in processes(lab)? {
            for fd in std::fs::read_dir(format!("/proc/{}/fd", pid.pid))?.flatten() {
                let target = std::fs::read_link(fd.path()).unwrap_or_default().to_string_lossy().into_owned();
                let kind = target.split([':', '(']).next().unwrap_or_default();
                *descriptors.entry(format!("{name} {kind}")).or_default() += 1;
            }
        }
        let mut facts = BTreeMap::new();
        let said = |argv: &[&str]| -> Result<String> {
            let text = node.exec(argv)?.ok()?;
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            Ok(lines.join("\n"))
        };
        facts.insert("netns", said(&["ls", "/run/netns"])?);
        facts.insert("links", said(&["sh", "-c", "ip -br link | cut -d' ' -f1 | cut -d@ -f1"])?);
        let rules = "nft list ruleset; ip rule; ip -6 rule; ip route show table all type local";
        facts.insert("rules", said(&["sh", "-c", rules])?);
        let state = "ls /run/culvert/status/pods; find /var/lib/culvert/cni /var/lib/cni -type f -name '*-*'";
        facts.insert("state", said(&["sh", "-c", state])?);
        Ok(Node { facts, descriptors })
    }

    /// What differs from how it was. A tunnel that has ended since is no difference: descriptors may be fewer, never more.
    fn differences(&self, now: &Node) -> Vec<String> {
        let facts = self.facts.iter().filter(|(what, was)| now.facts.get(*what) != Some(was));
        let facts = facts.map(|(what, was)| format!("{what}:\n  was {was}\n  is  {:?}", now.facts.get(what)));
        let had = |kind: &String| self.descriptors.get(kind).copied().unwrap_or(0);
        let more = now.descriptors.iter().filter(|(kind, count)| **count > had(kind));
        facts.chain(more.map(|(kind, count)| format!("{kind}: {count} descriptors, {} before", had(kind)))).collect()
    }

    /// Waits until the node is as it was.
    fn again(&self, lab: &Lab) -> Result<()> {
        let mut last = Vec::new();
        let came = wait::until_true("the node to be as before the pods", AWAY, || {
            last = Node::now(lab).map_or_else(|error| vec![format!("{error:#}")], |now| self.differences(&now));
            last.is_empty()
        });
        came.with_context(|| last.join("\n"))
    }
}

/// Makes pods, several at a time.
fn add(lab: &Lab, count: usize, name: &str) -> Result<Vec<PodHandle>> {
    let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    at_once(|| {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            let pod = lab.add_sandbox(Pod::new("shop", &format!("{name}-{n}")).app(App::None))?;
            made.lock().expect("no panic while held").push(pod);
        }
    })?;
    Ok(made.into_inner().expect("no panic while held"))
}

fn remove(lab: &Lab, pods: Vec<PodHandle>) -> Result<()> {
    let pods = Mutex::new(pods);
    at_once(|| {
        loop {
            let Some(pod) = pods.lock().expect("no panic while held").pop() else { return Ok(()) };
            lab.remove_pod(&pod)?;
        }
    })
}

fn at_once(work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))
    })
}

/// p50 and p99 of milliseconds.
fn quantiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |q: usize| times[(times.len() * q / 100).min(times.len() - 1)];
    (at(50), at(99))
}

/// Mean of a histogram's growth, in milliseconds.
fn mean(before: &str, after: &str, histogram: &str) -> Result<f64> {
    let value = |text: &str, what: &str| -> Result<f64> {
        let name = format!("{histogram}_{what} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().parse()?)
    };
    let grown = |what: &str| Ok::<_, anyhow::Error>(value(after, what)? - value(before, what)?);
    Ok(grown("sum")? / grown("count")? * 1e3)
}

/// The time in which the lab starts a program that does nothing: what of a plugin's time is not the plugin's.
fn starting(lab: &Lab) -> Result<(f64, f64)> {
    let one = || -> Result<f64> {
        let start = Instant::now();
        lab.node(1).exec(&["/bin/true"])?.ok()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let times = Mutex::new(Vec::new());
    at_once(|| {
        for _ in 0..25 {
            let took = one()?;
            times.lock().expect("no panic while held").push(took);
        }
        Ok(())
    })?;
    Ok(quantiles(times.into_inner().expect("no panic while held")))
}

#[test]
fn two_hundred_pods_cost_what_is_printed_and_leave_nothing_behind() -> Result<()> {
    let lab = mesh("scale")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let far = lab.add_pod(Pod::new("shop", "far").node(2))?;
    longest_gap(&lab, &cart, far.ips()[0], &far, "1 pod on the node, to a pod of the other node")?;
    lab.mesh().wait_ready(1)?;
    // A node that has been as full before: what the first 200 pods bring for good (1.2 MB of a worker's 14, pages of the allocator that
    // are partly in use) comes once, and a second 200 must add nothing to it.
    remove(&lab, add(&lab, PODS, "first")?)?;
    for ip in far.ips() {
        ensure!(cart.run_client(&["connect", &at(ip, ECHO), "--send", "x"])?["ok"] == 1, "{ip}");
    }
    wait::until_true("the first pods to be gone", CHANGE, || lab.pods().len() == 4)?;
    let before = settled(&lab)?;
    let memory_before: Vec<u64> = processes(&lab)?.iter().map(|(_, pid)| rss(pid)).collect::<Result<_>>()?;
    let fds_before: Vec<usize> = processes(&lab)?.iter().map(|(_, pid)| pid.fds().unwrap_or(0)).collect();
    let metrics = lab.mesh().watcher_metrics(1)?;

    let start = Instant::now();
    let pods = add(&lab, PODS, "many")?;
    let took = start.elapsed();
    figure(
        "pods_200_made_in",
        format!("{:.1}", took.as_secs_f64()),
        "s",
        &format!("{AT_ONCE} at a time, whole sandboxes"),
    );
    let ours = pods.iter().map(|pod| pod.added().time_of("culvert-cni").map(|t| t.as_secs_f64() * 1e3));
    let (p50, p99) = quantiles(ours.collect::<Option<Vec<f64>>>().context("our plugin in every chain")?);
    let (start_p50, start_p99) = starting(&lab)?;
    let note = format!(
        "{AT_ONCE} at a time; a program that does nothing takes {start_p50:.1} p50, {start_p99:.1} p99 to be started here"
    );
    figure("add_ours_p50", format!("{p50:.1}"), "ms", &note);
    figure("add_ours_p99", format!("{p99:.1}"), "ms", &note);
    let inside = mean(&metrics, &lab.mesh().watcher_metrics(1)?, "culvert_watcher_add_seconds")?;
    figure("add_in_pod_watcher_mean", format!("{inside:.1}"), "ms", "from the plugin's request to its answer");
    let now = processes(&lab)?;
    for (n, (name, pid)) in now.iter().enumerate() {
        let (fds, memory) = (pid.fds().unwrap_or(0), rss(pid)?);
        let each_fds = (fds as f64 - fds_before[n] as f64) / PODS as f64;
        let each = (memory as f64 - memory_before[n] as f64) / PODS as f64 / 1e3;
        figure(&format!("{name}_descriptors_200_pods"), fds, "descriptors", &format!("{each_fds:.1} per pod"));
        figure(
            &format!("{name}_memory_200_pods"),
            format!("{:.1}", memory as f64 / 1e6),
            "MB",
            &format!("{each:.0} kB per pod"),
        );
    }
    // The last one is served like the first.
    let last = pods.last().context("200 pods")?;
    for ip in far.ips() {
        ensure!(last.run_client(&["connect", &at(ip, ECHO), "--send", "x"])?["ok"] == 1, "{ip}");
    }
    let again = Instant::now();
    remove(&lab, pods)?;
    figure("pods_200_taken_away_in", format!("{:.1}", again.elapsed().as_secs_f64()), "s", "whole sandboxes");
    before.again(&lab)?;
    let mut last = String::new();
    wait::until_true("memory to come back", AWAY, || {
        last.clear();
        processes(&lab).is_ok_and(|now| {
            now.iter().zip(&memory_before).fold(true, |fine, ((name, pid), was)| {
                let is = rss(pid).unwrap_or(u64::MAX);
                last += &format!("{name} {:.1} → {:.1} MB; ", *was as f64 / 1e6, is as f64 / 1e6);
                fine && is <= was + was / 10
            })
        })
    })
    .with_context(|| last.clone())?;
    figure("memory_back_after", format!("{:.1}", again.elapsed().as_secs_f64()), "s", last.trim_end_matches("; "));
    lab.down()
}

#[test]
fn a_worker_killed_with_two_hundred_pods_is_replaced_before_new_connections_have_waited_long() -> Result<()> {
    let lab = mesh("scale-gap")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let far = lab.add_pod(Pod::new("shop", "far").node(2))?;
    add(&lab, PODS - 1, "many")?;
    for ip in far.ips() {
        longest_gap(&lab, &cart, ip, &far, "200 pods on the node, to a pod of the other node")?;
    }
    lab.down()
}

#[test]
fn pods_deleted_while_pod_watcher_is_down_leave_nothing_after_its_return() -> Result<()> {
    let lab = mesh("scale-down")?;
    remove(&lab, add(&lab, AT_ONCE, "first")?)?;
    let before = settled(&lab)?;
    let pods = add(&lab, 20, "some")?;
    ensure!(before.differences(&Node::now(&lab)?).len() > 5, "twenty pods change nothing that is looked at");
    let watcher = lab.mesh().watcher(1);
    watcher.kill()?;
    let start = Instant::now();
    remove(&lab, pods)?;
    ensure!(lab.pods().len() == 2, "DEL failed with pod-watcher down");
    let deleted = start.elapsed();
    watcher.restart()?;
    let back = Instant::now();
    before.again(&lab)?;
    let note = format!("20 pods deleted in {:.1} s while it was down", deleted.as_secs_f64());
    figure("handles_released_after_watcher_return", format!("{:.1}", back.elapsed().as_secs_f64()), "s", &note);
    lab.down()
}

/// The node when nothing changes any more: what is on its way when pods have just gone is not its rest.
fn settled(lab: &Lab) -> Result<Node> {
    let mut last = Node::now(lab)?;
    let mut since = Instant::now();
    wait::until("the node to come to rest", AWAY, || {
        let now = Node::now(lab).ok()?;
        if now != last {
            since = Instant::now();
        }
        last = now;
        (since.elapsed() > Duration::from_secs(2)).then_some(())
    })?;
    Ok(last)
}
