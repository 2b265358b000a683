//! `cargo xtask scale`: ten thousand pods on two hundred nodes that are objects in a real API server and nothing else, and what they cost
//! the control plane and a proxy. Prints figures; what is asserted is that all of it becomes known, and every change of it. Root, and the
//! parts that `cargo xtask` makes.

#[path = "../as_admin.rs"]
mod as_admin;
#[path = "../control_plane.rs"]
mod control_plane;
#[path = "../figure.rs"]
mod figure;
mod objects;
mod processes;
mod subscribers;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::mesh::{Mesh, NAMESPACE};
use cluster::{Cluster, Config};
use lab::wait;
use objects::{Counts, Writer};
use processes::{CONTROL_PLANE, Group, WORKER};
use subscribers::Seen;

use crate::figure::figure;

/// The issue's own figures.
const WHOLE: Counts = Counts { nodes: 200, services: 500, policies: 1_000, pods: 10_000 };
/// Pods are made in steps, so that growth is seen and not the start.
const STEPS: usize = 4;
/// Changes of pods whose cost is taken.
const CHANGES: usize = 400;
/// Changes a second: what a cluster of this size sees in a rolling upgrade of a large part of it.
const PACE: Duration = Duration::from_millis(25);
/// Streams besides those of the two proxies: with them there is one for each node.
const SUBSCRIBERS: usize = WHOLE.nodes - 2;
/// Until all that was written is known to a proxy.
const KNOWN: Duration = Duration::from_secs(120);

/// What the control plane and one proxy use now.
struct Use {
    control_plane: Group,
    proxy: Group,
}

fn used(cluster: &Cluster) -> Result<Use> {
    Ok(Use { control_plane: processes::on_all(cluster, CONTROL_PLANE)?, proxy: processes::on(cluster, 1, WORKER)? })
}

/// Waits until the proxy of node 1 holds so many workloads and services.
fn known(cluster: &Cluster, records: usize) -> Result<Duration> {
    let begun = Instant::now();
    let mut last = String::new();
    wait::until_true(&format!("{records} records at the proxy of node 1"), KNOWN, || {
        let now = processes::records(cluster, 1);
        last = format!("{now:?}");
        now.is_ok_and(|now| now >= records)
    })
    .with_context(|| format!("last: {last}"))?;
    Ok(begun.elapsed())
}

/// Waits until what was written has had all its consequences (conditions of policies are written at 20 a second, and each is heard by
/// every control plane) and memory that is free has gone back.
fn settled(cluster: &Cluster) -> Result<Use> {
    const LOOK: Duration = Duration::from_secs(2);
    let mut now = used(cluster)?;
    let mut last = String::new();
    wait::until_true("the control plane to come to rest", Duration::from_secs(240), || {
        let begun = Instant::now();
        while let Some(left) = LOOK.checked_sub(begun.elapsed()) {
            std::thread::park_timeout(left);
        }
        let Ok(next) = used(cluster) else { return false };
        let before = std::mem::replace(&mut now, next);
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / begun.elapsed().as_nanos() as f64;
        let shares = [
            share(now.control_plane.cpu, before.control_plane.cpu) / now.control_plane.processes as f64,
            share(now.proxy.cpu, before.proxy.cpu),
        ];
        last = format!("shares of a core: {shares:.3?}");
        // One in a hundred of a core: Leases, probes and scrapes go on.
        shares.iter().all(|share| *share < 0.01)
    })
    .with_context(|| last.clone())?;
    Ok(now)
}

fn kib(now: u64, before: u64, objects: usize) -> String {
    format!("{:.2}", (now as f64 - before as f64) / 1024.0 / objects as f64)
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

fn totals(when: &str, used: &Use) {
    let replica = used.control_plane.memory / used.control_plane.processes as u64;
    figure(&format!("control plane{when}"), mib(replica), "MiB", "one replica");
    figure(&format!("proxy{when}"), mib(used.proxy.memory), "MiB", "one worker with its supervisor");
}

/// A kind of object, how many there will be, and how all of them are written.
type Kind<'a> = (&'a str, usize, &'a dyn Fn() -> Result<Duration>);

fn grown(cluster: &Cluster, what: &str, count: usize, before: &Use) -> Result<Use> {
    let now = settled(cluster)?;
    let replicas = now.control_plane.processes;
    let each = kib(now.control_plane.memory, before.control_plane.memory, count * replicas);
    figure(&format!("control plane per {what}"), each, "KiB", &format!("of each of {replicas} replicas, {count} more"));
    figure(
        &format!("proxy per {what}"),
        kib(now.proxy.memory, before.proxy.memory, count),
        "KiB",
        &format!("{count} more"),
    );
    Ok(now)
}

/// What a change costs: pods become unready and ready again at a steady pace, and every stream is told each time.
fn churn(cluster: &Cluster, writer: &Writer<'_>, seen: &Seen, streams: usize) -> Result<()> {
    let (before, begun) = (used(cluster)?, Instant::now());
    let idle = Duration::from_secs(10);
    while begun.elapsed() < idle {
        std::thread::park_timeout(idle.saturating_sub(begun.elapsed()));
    }
    let quiet = used(cluster)?;
    seen.listen();
    let took = writer.flip(CHANGES, PACE)?;
    wait::until_true("every stream to be told of every change", KNOWN, || seen.fewest_changes() == CHANGES)
        .with_context(|| format!("one was told of {} of {CHANGES}", seen.fewest_changes()))?;
    let after = settled(cluster)?;
    let seconds = idle.as_secs_f64();
    let per_change = |after: u64, quiet: u64, before: u64| {
        // A thread that ends takes its time along.
        let idle = (quiet as f64 - before as f64) / seconds * took.as_secs_f64();
        (after as f64 - quiet as f64 - idle) / CHANGES as f64
    };
    let micros = per_change(after.control_plane.cpu, quiet.control_plane.cpu, before.control_plane.cpu) / 1e3;
    let seconds = took.as_secs_f64();
    let note = format!("{CHANGES} changes of a pod's readiness in {seconds:.0} s, all replicas, {streams} streams");
    figure("control plane CPU per change", format!("{micros:.0}"), "µs", &note);
    let micros = per_change(after.proxy.cpu, quiet.proxy.cpu, before.proxy.cpu) / 1e3;
    figure("proxy CPU per change", format!("{micros:.0}"), "µs", "one node");
    let bytes = per_change(after.proxy.received, quiet.proxy.received, before.proxy.received);
    figure("bytes per change", format!("{bytes:.0}"), "B", "received by one proxy, TCP and TLS included");
    let each = format!("{:.2}", seen.resources() / CHANGES as f64);
    figure("records told per change", each, "records", "to one stream; each was told of every change");
    Ok(())
}

/// As many streams as there are nodes: all of them new at once, then each told every change.
fn a_stream_for_each_node(cluster: &Cluster, writer: &Writer<'_>, before: &Use, records: usize) -> Result<()> {
    let begun = Instant::now();
    subscribers::with(cluster, SUBSCRIBERS, |seen| {
        let mut most = 0;
        wait::until_true("every stream to have been told everything", KNOWN, || {
            if let Ok(now) = processes::on_all(cluster, CONTROL_PLANE) {
                most = most.max(now.memory / now.processes as u64);
            }
            seen.complete(records) == SUBSCRIBERS
        })
        .with_context(|| format!("{} of {SUBSCRIBERS}", seen.complete(records)))?;
        let took = format!("{:.1}", begun.elapsed().as_secs_f64());
        figure(
            "new streams that were told everything",
            took,
            "s",
            &format!("{SUBSCRIBERS} at once, none knew anything"),
        );
        figure("control plane meanwhile", mib(most), "MiB", "one replica, the most that was seen");
        let now = settled(cluster)?;
        let each = kib(now.control_plane.memory, before.control_plane.memory, SUBSCRIBERS);
        figure("control plane per stream", each, "KiB", &format!("{SUBSCRIBERS} more, that have everything"));
        churn(cluster, writer, seen, SUBSCRIBERS + 2)
    })
}

/// A control plane that starts anew: from its process's start to what it serves being whole, by its own log.
fn restarts(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    for node in cluster.lab().nodes() {
        // 1: the scheduler put none there.
        node.exec(&["pkill", "-KILL", "-x", "control-plane"])?;
    }
    let selector = "app.kubernetes.io/component=control-plane";
    wait::until_true("the control plane to serve again", KNOWN, || {
        let ready = "jsonpath={.items[*].status.containerStatuses[*].ready} {.items[*].status.containerStatuses[*].restartCount}";
        let said = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", selector, "-o", ready]);
        said.is_ok_and(|said| !said.contains("false") && !said.split_whitespace().any(|word| word == "0"))
    })?;
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", selector])?;
    for pod in pods["items"].as_array().context("a list")? {
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        let log = cluster.kubectl(&["logs", "-n", NAMESPACE, name])?;
        let took = processes::first_snapshot(&log).with_context(|| format!("log of {name}:\n{log}"))?;
        figure(
            "first full snapshot",
            format!("{:.2}", took.as_secs_f64()),
            "s",
            &format!("{name}, from its start; both at once on two cores"),
        );
    }
    figure(
        "control plane Ready after a kill",
        format!("{:.1}", begun.elapsed().as_secs_f64()),
        "s",
        "kubelet's restart included",
    );
    Ok(())
}

/// A proxy that knows nothing: its last good configuration is taken away with its process.
fn fresh_proxy(cluster: &Cluster, records: usize) -> Result<()> {
    let forget = "rm -rf /var/lib/culvert/node-proxy/* && pkill -KILL -f '[n]ode-proxy worker'";
    cluster.lab().node(1).exec(&["sh", "-c", forget])?.ok()?;
    let took = known(cluster, records)?;
    figure(
        "a proxy that knew nothing knows all",
        format!("{:.1}", took.as_secs_f64()),
        "s",
        "kubelet's restart included",
    );
    Ok(())
}

#[test]
fn ten_thousand_pods_on_two_hundred_nodes_cost_what_is_printed() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: namespaces, mounts and control groups");
    let mesh = Mesh::find()?;
    let cluster = Cluster::up(&Config { name: "scale".to_owned(), ..Config::default() }, |_| {})?;
    cluster.install(&mesh, |_| {})?;
    // What would take away pods of nodes that are not there, and make others in their place.
    cluster.lab().processes().remove("kube-controller-manager").context("the controllers' process")?.kill()?;
    let writer = Writer(&cluster);
    let start = settled(&cluster)?;
    let own = processes::records(&cluster, 1)?;
    let whole = own + WHOLE.services + WHOLE.pods;
    totals(", empty", &start);

    writer.namespaces()?;
    let mut last = settled(&cluster)?;
    let kinds: [Kind<'_>; 3] = [
        ("node", WHOLE.nodes, &|| writer.nodes(WHOLE.nodes)),
        ("service with its slice", WHOLE.services, &|| writer.services(WHOLE)),
        ("policy", WHOLE.policies, &|| writer.policies(WHOLE)),
    ];
    for (what, count, write) in kinds {
        let rate = format!("{:.0}", count as f64 / write()?.as_secs_f64());
        figure(&format!("written: {what}"), rate, "per second", &format!("{count} of them"));
        last = grown(&cluster, what, count, &last)?;
    }
    known(&cluster, own + WHOLE.services)?;
    for step in 0..STEPS {
        let each = WHOLE.pods / STEPS;
        let wrote = writer.pods(step * each..(step + 1) * each)?;
        let behind = known(&cluster, own + WHOLE.services + (step + 1) * each)?;
        let note = format!("{each} of {}; the proxy knew them {:.2} s later", WHOLE.pods, behind.as_secs_f64());
        figure("pods written", format!("{:.0}", each as f64 / wrote.as_secs_f64()), "per second", &note);
        last = grown(&cluster, "pod", each, &last)?;
    }
    totals(", everything known", &last);
    subscribers::with(&cluster, 1, |seen| {
        wait::until_true("a stream to have been told everything", KNOWN, || seen.complete(whole) == 1)?;
        churn(&cluster, &writer, seen, 3)
    })?;
    a_stream_for_each_node(&cluster, &writer, &last, whole)?;
    restarts(&cluster)?;
    fresh_proxy(&cluster, whole)
}
