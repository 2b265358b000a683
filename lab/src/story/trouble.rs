//! The mesh in trouble: each of its processes is killed in turn, and what goes on is counted.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::{ECHO, HTTP};
use lab::{App, Pod, Program, Signal, wait};

use super::teller::Teller;
use super::traffic::report;
use super::{Cast, at};

pub(super) fn tell(teller: &mut Teller, cast: &Cast) {
    worker_killed(teller, cast);
    watcher_killed(teller, cast);
    control_plane_stopped(teller, cast);
}

fn worker_killed(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, far, .. } = cast;
    teller.step("worker killed", |teller| {
        let (mesh, node) = (lab.mesh(), cart.node());
        let keeper = mesh.keeper(node).pid();
        let old = mesh.worker_child(node)?;
        let to = at(far.ips()[0], ECHO);
        let prober = cart.client("prober", &["probe", &to, "--rate", "1000", "--echo", "--timeout", "5000"])?;
        prober.wait_stdout("ready", Duration::from_secs(5))?;
        let served = far.stats().port(ECHO).connections + 200;
        wait::until_true("200 connections to be served", Duration::from_secs(10), || {
            far.stats().port(ECHO).connections >= served
        })?;
        old.signal(Signal::KILL);
        wait::until_true("a new worker", Duration::from_secs(10), || {
            mesh.worker_child(node).is_ok_and(|new| new != old) && mesh.wait_ready(node).is_ok()
        })?;
        // Long enough before and after the kill that the gap is the kill's and not the prober's start or end.
        let served = far.stats().port(ECHO).connections + 500;
        wait::until_true("500 more connections to be served", Duration::from_secs(10), || {
            far.stats().port(ECHO).connections >= served
        })?;
        prober.close_stdin();
        let seen = report(&prober)?;
        let gap = seen["phases"][0]["longest_gap_ms"].as_f64().context("a gap")?;
        teller.figure("worker_kill_gap_ms", gap);
        ensure!(mesh.keeper(node).is_alive() && mesh.keeper(node).pid() == keeper, "the keeper did not stay");
        Ok((
            (),
            format!(
                "longest time without a served new connection: {gap:.0} ms; {} keeper's pid unchanged",
                seen["phases"][0]["outcomes"]
            ),
        ))
    });
}

/// A few connections of cart's one after the other.
fn reaches(cast: &Cast, to: &str, count: u32) -> Result<()> {
    let echo = cast.cart.run_client(&["connect", to, "--send", "hello", "--count", &count.to_string()])?;
    ensure!(echo["ok"] == count, "cart to {to}: {echo}");
    Ok(())
}

fn watcher_killed(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, far, .. } = cast;
    teller.step("pod-watcher killed", |teller| {
        let watcher = lab.mesh().watcher(1);
        let to = at(far.ips()[0], ECHO);
        watcher.kill()?;
        reaches(cast, &to, 5)?;
        let start = Instant::now();
        let plain = lab.add_sandbox(Pod::new("outside", "meanwhile").app(App::None))?;
        let ours = plain.added().time_of("culvert-cni").unwrap_or_default();
        let plain_took = start.elapsed();
        let refused = lab.add_sandbox(Pod::new("shop", "meanwhile").app(App::None));
        watcher.restart()?;
        let Err(refused) = refused else { anyhow::bail!("an enrolled pod started without pod-watcher") };
        let cause = refused.downcast_ref::<lab::CniError>().map(ToString::to_string).unwrap_or_else(|| format!("{refused:#}"));
        lab.remove_pod(&plain)?;
        let again = lab.add_sandbox(Pod::new("shop", "afterwards").app(App::None)).context("after the restart")?;
        lab.remove_pod(&again)?;
        teller.figure("add_plain_without_watcher_ms", ours.as_secs_f64() * 1e3);
        Ok(((), format!(
            "traffic went on; a pod outside of the mesh started ({} ms, our part {:.1} ms); an enrolled one was refused:\n{cause}",
            plain_took.as_millis(), ours.as_secs_f64() * 1e3
        )))
    });
}

fn control_plane_stopped(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, far, .. } = cast;
    teller.step("control plane stopped", |teller| {
        let mut world =
            Program::new("outside-world", &["culvert-lab", "app", "--name", "world"]).args([format!("http:{HTTP}")]);
        world.user = lab::User::plain(65534);
        let world = lab.fabric().spawn(world)?;
        world.wait_stdout("ready", Duration::from_secs(5))?;
        let control_plane = lab.mesh().control_plane();
        control_plane.kill()?;
        reaches(cast, &at(far.ips()[0], ECHO), 5)?;
        let v4 = lab.families().v4();
        let unknown: IpAddr = if v4 { "198.18.2.250".parse()? } else { "fd77:0:0:2::fa".parse()? };
        let start = Instant::now();
        let refused = cart.run_client(&["connect", &at(unknown, ECHO), "--expect", "1", "--timeout", "5000"])?;
        let took = start.elapsed();
        ensure!(refused["ok"] == 0 && refused["outcomes"]["timeout"].is_null(), "unknown destination: {refused}");
        ensure!(took < Duration::from_secs(2), "an unknown destination was refused only after {took:?}");
        let outside: IpAddr = if v4 { lab::plan::OUTSIDE_V4.into() } else { lab::plan::OUTSIDE_V6.into() };
        let page = cart.exec(&["curl", "-s", "-g", "-m", "5", &format!("http://{}/", at(outside, HTTP))])?.ok()?;
        ensure!(page.contains("hello from world"), "outside of the cluster: {page}");
        control_plane.restart()?;
        world.kill()?;
        teller.figure("unknown_destination_ms", took.as_secs_f64() * 1e3);
        Ok((
            (),
            format!(
                "known pods go on; {unknown} refused after {:.0} ms; {outside}, outside of the cluster, passes",
                took.as_secs_f64() * 1e3
            ),
        ))
    });
}
