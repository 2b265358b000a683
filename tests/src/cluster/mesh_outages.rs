//! What the mesh depends on goes away for a while, one after the other; the traffic of pods that run never notices.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::Exit;

use crate::shop::{Member, captured, meshed, say, start};
use crate::support::figure;

/// How long the API server is away (the issue's own figure).
const AWAY: Duration = Duration::from_secs(60);

/// Lets an outage last.
fn lasts(time: Duration) {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        std::thread::park_timeout(left);
    }
}

/// What came of the traffic meanwhile.
#[derive(Default)]
struct Traffic {
    sent: usize,
    failed: Vec<String>,
}

/// New connections and one old one, from `from` to each of `to` over each family, one after the other, until `work` is done.
fn while_talking(from: &Member, to: &[Member], work: impl FnOnce() -> Result<()>) -> Result<Traffic> {
    let (over, traffic) = (AtomicBool::new(false), Mutex::new(Traffic::default()));
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = to
            .iter()
            .flat_map(Member::echo)
            .map(|to| {
                let (over, traffic) = (&over, &traffic);
                scope.spawn(move || -> Result<()> {
                    let old = from.connect(to)??;
                    while !over.load(Ordering::Relaxed) {
                        let met = [say(&old), from.asks(to)?];
                        let mut traffic = traffic.lock().expect("no panic while held");
                        traffic.sent += met.len();
                        traffic.failed.extend(met.into_iter().filter_map(|met| Some(format!("{to}: {}", met.err()?))));
                        drop(traffic);
                        std::thread::park_timeout(Duration::from_millis(20));
                    }
                    Ok(())
                })
            })
            .collect();
        let done = work();
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))?;
        done
    });
    done.map(|()| traffic.into_inner().expect("no panic while held"))
}

/// Ends a container's processes as a crash would, and waits until the pod is Ready again.
fn killed(cluster: &Cluster, component: &str, program: &str) -> Result<()> {
    let mut nodes = 0;
    for node in cluster.lab().nodes() {
        // pkill(1): 0 if it ended one of this node's processes, 1 if none has the name, as where the scheduler put both replicas on one node.
        let output = node.exec(&["pkill", "-KILL", "-x", program])?;
        match output.exit {
            Exit::Code(0) => nodes += 1,
            Exit::Code(1) => {}
            _ => drop(output.ok().with_context(|| format!("kill {program} on {}", node.name()))?),
        }
    }
    ensure!(nodes > 0, "{program} ran on no node");
    let selector = format!("app.kubernetes.io/component={component}");
    let begun = Instant::now();
    // Until it is seen that they went: Ready is what they were.
    lab::wait::until_true(&format!("{component} to be started again"), Duration::from_secs(60), || {
        let counts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
        let said = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", counts]);
        said.is_ok_and(|counts| counts.split_whitespace().all(|count| count != "0"))
    })?;
    cluster.kubectl(&["wait", "pods", "-n", NAMESPACE, "-l", &selector, "--for=condition=Ready", "--timeout=120s"])?;
    figure(
        &format!("{component} back after kill"),
        format!("{:.1}", begun.elapsed().as_secs_f64()),
        "s",
        &format!("killed on {nodes} nodes"),
    );
    Ok(())
}

#[test]
fn traffic_goes_on_while_the_api_server_the_control_plane_and_pod_watcher_are_away() -> Result<()> {
    let (cluster, _) = meshed("kube-outages", true)?;
    let cart = start(&cluster, "shop", "cart", 1)?;
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    captured(&cluster, &[&cart, &webs[0], &webs[1]], true)?;
    let mut failed = Vec::new();
    let mut step = |name: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        let traffic = while_talking(&cart, &webs, work).with_context(|| name.to_owned())?;
        figure(&format!("failed while {name}"), traffic.failed.len(), "requests", &format!("of {}", traffic.sent));
        ensure!(traffic.sent > 100, "{name}: only {} requests were tried", traffic.sent);
        failed.extend(traffic.failed.into_iter().take(5).map(|what| format!("{name}: {what}")));
        Ok(())
    };
    step("nothing happens", &|| {
        lasts(Duration::from_secs(3));
        Ok(())
    })?;
    step("the API server is away", &|| {
        let api = cluster.lab().processes().remove("kube-apiserver").context("the API server's process")?;
        api.kill()?;
        lasts(AWAY);
        api.restart()?;
        lab::wait::until_true("the API server to answer", Duration::from_secs(60), || {
            cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok()
        })
    })?;
    step("the control plane is killed", &|| killed(&cluster, "control-plane", "control-plane"))?;
    step("pod-watcher is killed", &|| killed(&cluster, "pod-watcher", "pod-watcher"))?;
    ensure!(failed.is_empty(), "{failed:#?}");
    // And all of it works again.
    let late = start(&cluster, "shop", "late", 2)?;
    captured(&cluster, &[&late], true)?;
    crate::shop::until(&cart, &late, true)
}
