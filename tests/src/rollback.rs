//! An older last good configuration that the worker's user puts back is not believed, whatever was restarted meanwhile; and one that
//! nobody has confirmed for too long lets nobody in.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{Config, Lab, MeshConfig, Pod, PodHandle, wait};
use mesh_api::xds::saved::Saved;

use crate::restart::kill_worker;
use crate::support::{self, CHANGE, Clear, at, family, mesh};

/// A worker that ends sooner than this after its start has crashed, as the supervisor counts; and a margin.
const QUICK: Duration = Duration::from_secs(12);

/// The file of node 2, where the called pod is.
fn file(lab: &Lab) -> PathBuf {
    lab.node(2).init().root("/var/lib/culvert/node-proxy/last-good")
}

fn saved(lab: &Lab) -> Option<Saved> {
    Saved::decode(&std::fs::read(file(lab)).ok()?).ok()
}

/// As the worker's user would: same owner, same mode.
fn put_back(lab: &Lab, bytes: &[u8]) -> Result<()> {
    let (path, aside) = (file(lab), file(lab).with_extension("old"));
    std::fs::write(&aside, bytes)?;
    std::os::unix::fs::chown(&aside, Some(lab::mesh::WORKER_UID), Some(lab::mesh::WORKER_UID))?;
    Ok(std::fs::rename(aside, path)?)
}

const ONLY_CART: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-cart}
spec: {rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}
";

fn answered(from: &PodHandle, to: &PodHandle) -> Result<Vec<bool>> {
    let ask = |ip| Ok(from.run_client(&["connect", &at(ip, ECHO), "--send", "x", "--timeout", "3000"])?["ok"] == 1);
    to.ips().into_iter().map(ask).collect()
}

fn refused(from: &PodHandle, to: &PodHandle, when: &str) -> Result<()> {
    for (answered, ip) in answered(from, to)?.into_iter().zip(to.ips()) {
        ensure!(!answered, "{when}, {}: a caller whom policy refuses was served", family(ip));
    }
    Ok(())
}

fn events(lab: &Lab, event: &str) -> u64 {
    let series = format!("culvert_last_good_total{{event=\"{event}\"}} ");
    let page = lab.mesh().worker_metrics(2).unwrap_or_default();
    page.lines().find_map(|line| line.strip_prefix(&series)?.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn an_older_configuration_is_not_believed_after_a_restart_of_worker_keeper_pod_watcher_and_node() -> Result<()> {
    let lab = mesh("rollback")?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(2))?;
    let guest = lab.add_pod(Pod::new("outside", "guest"))?;
    lab.allow("a caller outside of the mesh", Clear::of(&guest));
    ensure!(answered(&guest, &web)?.iter().all(|answered| *answered), "PERMISSIVE, before the policy");
    wait::until_true("a last good configuration without the policy", CHANGE, || saved(&lab).is_some())?;
    let old = std::fs::read(file(&lab))?;
    let before = saved(&lab).context("just seen")?.counter;
    ensure!(before > 0, "the file is not counted");

    lab.apply("only-cart", ONLY_CART)?;
    let named = |saved: &Saved| saved.resources.iter().any(|resource| resource.name == "shop/only-cart");
    wait::until_true("a last good configuration with the policy", CHANGE, || {
        saved(&lab).is_some_and(|saved| named(&saved) && saved.counter > before)
    })?;
    refused(&guest, &web, "before anything")?;
    wait::until_true("pod-watcher to have written the counter down", CHANGE, || {
        let text = lab.node(2).read("/var/lib/culvert/cni/last-good-counter").unwrap_or_default();
        saved(&lab).is_some_and(|saved| text.contains(&format!("\"highest\":{}", saved.counter)))
    })?;
    without_control_plane(&lab)?;
    let newest = std::fs::read(file(&lab))?;

    put_back(&lab, &old)?;
    kill_worker_unready(&lab)?;
    wait::until_true("the older file to be refused", CHANGE, || events(&lab, "outdated") == 1)?;
    refused(&guest, &web, "the worker started anew")?;

    // With pod-watcher and keeper gone nobody has the counter in memory.
    put_back(&lab, &old)?;
    lab.mesh().watcher(2).kill()?;
    lab.mesh().keeper(2).kill()?;
    lab.mesh().watcher(2).restart()?;
    lab.mesh().keeper(2).restart()?;
    let born = Instant::now();
    wait::until_true("a worker behind a new pod-watcher and a new keeper to refuse it", CHANGE, || {
        events(&lab, "outdated") == 1 && !file(&lab).exists()
    })?;
    refused(&guest, &web, "pod-watcher and keeper started anew")?;

    // The file that was the latest is believed, and the policy in it holds.
    put_back(&lab, &newest)?;
    // A third quick end in a row would set the file aside, whatever it is.
    wait::until_true("the worker to count as one that lives", CHANGE * 2, || born.elapsed() > QUICK)?;
    kill_worker(&lab, 2)?;
    ensure!(events(&lab, "loaded") == 1, "the latest file is not believed");
    refused(&guest, &web, "the latest file")?;
    lab.down()
}

/// Ends the control plane; returns when the worker of node 2 has written down when it was last confirmed.
fn without_control_plane(lab: &Lab) -> Result<()> {
    let before = saved(lab).context("a last good configuration")?.counter;
    lab.mesh().control_plane().kill()?;
    wait::until_true("what is written at the end of a stream", CHANGE, || {
        saved(lab).is_some_and(|saved| saved.counter > before)
    })
}

/// Kills the worker of node 2; the next one has no configuration, and is not ready.
fn kill_worker_unready(lab: &Lab) -> Result<()> {
    let old = lab.mesh().worker_child(2)?;
    ensure!(old.signal(lab::Signal::KILL), "the worker had ended already");
    wait::until_true("another worker", CHANGE, || lab.mesh().worker_child(2).is_ok_and(|new| new != old))
}

#[test]
fn an_older_configuration_is_not_believed_after_a_power_cut() -> Result<()> {
    let lab = mesh("rollback-cut")?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(2))?;
    let guest = lab.add_pod(Pod::new("outside", "guest"))?;
    lab.allow("a caller outside of the mesh", Clear::of(&guest));
    wait::until_true("a last good configuration without the policy", CHANGE, || saved(&lab).is_some())?;
    let old = std::fs::read(file(&lab))?;
    let before = saved(&lab).context("just seen")?.counter;
    lab.apply("only-cart", ONLY_CART)?;
    wait::until_true("the counter of a newer one to be written down", CHANGE, || {
        let text = lab.node(2).read("/var/lib/culvert/cni/last-good-counter").unwrap_or_default();
        let named = |saved: &Saved| saved.resources.iter().any(|resource| resource.name == "shop/only-cart");
        saved(&lab).is_some_and(|saved| {
            saved.counter > before && named(&saved) && text.contains(&format!("\"highest\":{}", saved.counter))
        })
    })?;
    put_back(&lab, &old)?;
    lab.node(2).power_cut()?;
    lab.mesh().control_plane().kill()?;
    lab.power_on(2)?;
    // Without a configuration the worker is not ready, and without one no pod of the mesh gets in.
    let started = lab.start_pods(2);
    ensure!(started.is_err() || events(&lab, "outdated") == 1, "the older file was believed after the power cut");
    wait::until_true("the older file to be refused", CHANGE, || events(&lab, "outdated") == 1)?;
    ensure!(events(&lab, "loaded") == 0, "the older file was believed after the power cut");
    let _ = (web, guest);
    lab.down()
}

#[test]
fn a_configuration_that_nobody_has_confirmed_for_too_long_lets_nobody_in() -> Result<()> {
    let limit = Duration::from_secs(3600);
    let worker_args = vec!["--last-good-inbound-seconds".to_owned(), limit.as_secs().to_string()];
    let config = MeshConfig { worker_args, ..MeshConfig::default() };
    let lab = support::lab(Config::default().name("aged").mesh(config))?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(2))?;
    let near = lab.add_pod(Pod::new("shop", "near").service_account("near").node(2))?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    let guest = lab.add_pod(Pod::new("outside", "guest"))?;
    lab.allow("a caller outside of the mesh", Clear::of(&guest));
    let callers = [&cart, &near, &guest];
    for caller in callers {
        ensure!(answered(caller, &web)?.iter().all(|answered| *answered), "{} before", caller.key());
    }
    wait::until_true("a last good configuration", CHANGE, || {
        saved(&lab).is_some_and(|saved| saved.resources.iter().any(|resource| resource.name.ends_with("/cart")))
    })?;
    without_control_plane(&lab)?;
    let now = saved(&lab).context("there")?;

    // Within its age: everything as before.
    let young = Saved { written_at: SystemTime::now() - limit + Duration::from_secs(600), ..now.clone() };
    put_back(&lab, &young.encode())?;
    kill_worker(&lab, 2)?;
    for caller in callers {
        ensure!(answered(caller, &web)?.iter().all(|answered| *answered), "{}, young", caller.key());
    }
    // Past it: nobody gets in, by tunnel, on the same node or in clear; and the reason is told.
    let aged = Saved { written_at: SystemTime::now() - limit - Duration::from_secs(1), ..now };
    put_back(&lab, &aged.encode())?;
    kill_worker(&lab, 2)?;
    let since = lab.mesh().access_log(2).len();
    for caller in callers {
        refused(caller, &web, "past its age")?;
    }
    wait::until_true("the refusals' reason", CHANGE, || {
        let lines = lab.mesh().access_log(2).into_iter().skip(since);
        let told: Vec<_> = lines.filter(|line| line["reason"] == "PolicyUnknown").collect();
        let of = |caller: &PodHandle| {
            caller.ips().iter().all(|ip| {
                let ip = match ip.is_ipv4() {
                    true => format!("{ip}:"),
                    false => format!("[{ip}]:"),
                };
                told.iter().any(|line| line["client"].as_str().is_some_and(|client| client.starts_with(&ip)))
            })
        };
        callers.iter().all(|caller| of(caller))
    })?;
    // The way out is another matter: this pod's own calls are judged at their far end.
    ensure!(answered(&near, &cart)?.iter().all(|answered| *answered), "the way out of an aged node");
    // The control plane is back: it confirms, and all is as before.
    lab.mesh().control_plane().restart()?;
    wait::until_true("the control plane's word", Duration::from_secs(30), || {
        answered(&cart, &web).is_ok_and(|all| all.into_iter().all(|answered| answered))
    })?;
    for caller in callers {
        ensure!(answered(caller, &web)?.iter().all(|answered| *answered), "{} after", caller.key());
    }
    lab.down()
}
