//! What a pod costs its node's mesh: memory of all our processes and the kernel memory charged to them, and the time in which one
//! joins.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{App, Lab, Pid, Pod, PodHandle, cgroup};

use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::measure::memory;
use crate::path::Place;
use crate::plane::{ECHO, NAMESPACE};
use crate::traffic::Work;

/// Pods made at a time: kubelet too starts several.
const AT_ONCE: usize = 4;
/// The bench's pods on node 1: client, neighbour and the near server. They count: a node's range has 253 addresses.
const OWN: usize = 3;
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    let many = Sized { whole: 1, quick: 0 };
    vec![join(), nodes(0, Sized { whole: 1, quick: 1 }, 1), nodes(100, many, 30), nodes(250, many, 70)]
}

fn nodes(count: usize, rounds: Sized<usize>, seconds: u64) -> Scenario {
    let takes = Duration::from_secs(seconds);
    Scenario {
        name: format!("pods-{count}"),
        about: format!(
            "{} pods on a node, the bench's {OWN} among them: memory of the mesh's processes there",
            count.max(OWN)
        ),
        paths: Paths::Node,
        planes: Planes::Mesh,
        rounds,
        takes: Sized { whole: takes, quick: takes },
        sample: Box::new(move |cx| with_pods(cx, count.saturating_sub(OWN))),
    }
}

fn with_pods(cx: &Context<'_>, count: usize) -> Result<Vec<Figure>> {
    cx.plane.fresh()?;
    let lab = cx.plane.lab();
    let processes: Vec<(String, Pid)> = cx.plane.processes(1)?;
    let pids: Vec<Pid> = processes.iter().map(|(_, pid)| *pid).collect();
    let before = (memory::pss(&pids)?, kernel(lab));
    let start = Instant::now();
    let pods = add(cx, lab, count, |_| "default".into())?;
    let took = start.elapsed();
    let each: Vec<(String, u64)> =
        processes.into_iter().map(|(role, pid)| Ok((role, memory::pss(&[pid])?))).collect::<Result<_>>()?;
    let after = (memory::pss(&pids)?, kernel(lab));
    remove(lab, pods)?;
    let kib = |now: u64, before: u64| (now as f64 - before as f64) / 1024.0;
    let mut figures = vec![Figure::new("memory", "KiB", kib(after.0, 0))];
    figures.extend(each.into_iter().map(|(role, bytes)| Figure::new(format!("memory_{role}"), "KiB", kib(bytes, 0))));
    if count > 0 {
        figures.push(Figure::new("per_pod", "KiB", kib(after.0, before.0) / count as f64));
        if let (Some(before), Some(after)) = (before.1, after.1) {
            figures.push(Figure::new("kernel_per_pod", "KiB", kib(after, before) / count as f64));
        }
        figures.push(Figure::new("rate", "1/s", count as f64 / took.as_secs_f64()));
    }
    Ok(figures)
}

/// Kernel memory charged to keeper, worker and pod-watcher of node 1, where the machine counts it by control group.
fn kernel(lab: &Lab) -> Option<u64> {
    let proxy = cgroup::kernel_memory(lab.name(), &lab.mesh().proxy_pod(1).cgroup())?;
    Some(proxy + cgroup::kernel_memory(lab.name(), "node-1/system/pod-watcher")?)
}

/// Makes pods without an app on node 1, several at a time, under these service accounts.
pub(super) fn add(
    cx: &Context<'_>,
    lab: &Lab,
    count: usize,
    account: impl Fn(usize) -> String + Sync,
) -> Result<Vec<PodHandle>> {
    let (next, made, deadline) = (AtomicUsize::new(0), Mutex::new(Vec::new()), cx.deadline);
    let done = at_once(|| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the scenario's time is over");
            let name = format!("more-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let pod = Pod::new(NAMESPACE, &name).service_account(&account(number)).app(App::None);
            let pod = lab.add_sandbox(pod)?;
            made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(pod);
        }
    });
    let made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Err(error) = done {
        let _ = remove(lab, made); // the first error is the one to tell
        return Err(error);
    }
    Ok(made)
}

/// Takes them away again.
pub(super) fn remove(lab: &Lab, pods: Vec<PodHandle>) -> Result<()> {
    let pods = Mutex::new(pods);
    at_once(|| {
        loop {
            let Some(pod) = pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop() else { return Ok(()) };
            lab.remove_pod(&pod)?;
        }
    })
}

pub(super) fn at_once(work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
    })
}

fn join() -> Scenario {
    Scenario {
        name: "pod-add".into(),
        about: "a pod joins: its whole sandbox, our plugin's part of that, and its first connection".into(),
        paths: Paths::One(Place::CrossNode),
        planes: Planes::Kinds,
        rounds: Sized { whole: 5, quick: 2 },
        takes: Sized { whole: Duration::from_millis(900), quick: Duration::from_millis(900) },
        sample: Box::new(|cx| {
            let name = format!("joins-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let start = Instant::now();
            let pod = cx.plane.add_client(&name)?;
            let sandbox = start.elapsed();
            let report = (|| {
                let client = cx.client(&pod, ECHO, Work::First { size: 64 })?;
                client.begin()?;
                client.answered(cx.left()?)?;
                client.end()?;
                client.report(cx.left()?)
            })();
            cx.plane.remove(&pod)?;
            let first = report?.latency.context("the first connection was not answered")?;
            let mut figures = vec![
                Figure::new("sandbox", "ms", sandbox.as_secs_f64() * 1e3),
                Figure::new("first_connection", "ms", first.p50 / 1e3),
            ];
            let ours = pod.added().time_of("culvert-cni");
            figures.extend(ours.map(|ours| Figure::new("plugin", "ms", ours.as_secs_f64() * 1e3)));
            Ok(figures)
        }),
    }
}
