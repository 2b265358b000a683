//! A worker that has been taken over cannot keep its successors from the keeper: the socket that they dial is not its own to take away,
//! and one that is gone all the same comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::pod::ECHO;
use lab::{Lab, Pod, PodHandle, Signal, wait};

use crate::restart::kill_worker;
use crate::support::{CHANGE, at, family, mesh};

const SOCKET: &str = "/run/node-proxy/keeper.sock";

/// Runs a command on node 1 as the worker's user, in the worker's own mount namespace; whether it succeeded.
fn as_worker(lab: &Lab, command: &[&str]) -> Result<bool> {
    let pid = lab.mesh().worker_child(1)?.pid.to_string();
    let mut argv = vec!["nsenter", "-t", &pid, "-m", "setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"];
    argv.extend(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]);
    argv.extend(command);
    // From outside: as the attacker's own system calls would be, which its filter allows.
    Ok(std::process::Command::new(argv[0]).args(&argv[1..]).output()?.status.success())
}

fn served(cart: &PodHandle, web: &PodHandle) -> Result<()> {
    for ip in web.ips() {
        let seen = cart.run_client(&["connect", &at(ip, ECHO), "--send", "hello", "--timeout", "10000"])?;
        ensure!(seen["ok"] == 1, "{}: {seen}", family(ip));
    }
    Ok(())
}

#[test]
fn the_workers_user_cannot_take_the_keepers_socket_away_and_a_socket_that_is_gone_comes_back() -> Result<()> {
    let lab = mesh("keeper-socket")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    served(&cart, &web)?;
    for attempt in [
        &["rm", "-f", SOCKET][..],
        &["mv", SOCKET, "/run/node-proxy/gone"],
        &["mv", "/run/node-proxy", "/run/gone"],
        &["chmod", "000", SOCKET],
        &["chmod", "777", "/run/node-proxy"],
        &["ln", "-sf", "/dev/null", SOCKET],
        &["touch", "/run/node-proxy/mine"],
    ] {
        ensure!(!as_worker(&lab, attempt)?, "the worker's user could: {attempt:?}");
    }
    // The measure is not met by a user that can do nothing: its own directory is its own.
    ensure!(as_worker(&lab, &["touch", "/run/node-proxy-worker/mine"])?, "the worker's user is not what it should be");
    kill_worker(&lab, 1)?;
    served(&cart, &web)?;

    // Root has tidied up, and the worker is gone before the socket is back.
    lab.node(1).exec(&["rm", SOCKET])?.ok()?;
    let keeper = lab.mesh().keeper(1).id();
    kill_worker(&lab, 1)?;
    ensure!(lab.mesh().keeper(1).id() == keeper && keeper.is_alive(), "the keeper did not stay");
    served(&cart, &web)?;
    // The same while nobody is served: the socket comes back by itself.
    ensure!(lab.mesh().worker(1).id().signal(Signal::STOP), "the supervisor had ended");
    ensure!(lab.mesh().worker_child(1)?.signal(Signal::KILL), "the worker had ended");
    lab.node(1).exec(&["rm", SOCKET])?.ok()?;
    wait::until_true("the socket to come back", Duration::from_secs(5), || lab.node(1).init().root(SOCKET).exists())?;
    lab.mesh().worker(1).id().signal(Signal::CONT);
    wait::until_true("a worker", CHANGE, || lab.mesh().worker_child(1).is_ok_and(|worker| worker.is_alive()))?;
    lab.mesh().wait_ready(1)?;
    served(&cart, &web)?;
    lab.down()
}
