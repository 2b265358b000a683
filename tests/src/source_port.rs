//! The socket that stands for a client towards the app takes the client's own address and port, beside the client's live connection
//! with the very same numbers in the same network namespace: both move what they are given.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::pod::{BULK, ECHO, WHOAMI};
use lab::{Lab, Pod, PodHandle, User, wait};

use crate::support::{CHANGE, at, family, figure, mesh, report};

/// 1 MB each way, slowly enough to be looked at: 0.4 s.
const BULK_ARGS: [&str; 6] = ["--up", "1000000", "--down", "1000000", "--rate", "2500000"];

/// What the client's connection has as its own port while its double has the application's.
const LANDING: std::ops::RangeInclusive<u16> = 15104..=15119;

/// Established connections of the pod's network, as (local, remote).
fn established(pod: &PodHandle) -> Result<Vec<(String, String)>> {
    let text = pod.exec_as(User::root(), &["ss", "-Htn", "state", "established"])?.ok()?;
    // As `ss` writes them: `[::ffff:198.18.1.6]:42001`, `198.18.1.6%lo:42001`.
    let unmapped = |text: &str| text.replace("%lo", "").replace("[::ffff:", "").replace("]:", ":").replace('[', "");
    let read = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        Some((unmapped(fields.next()?), unmapped(fields.next()?)))
    };
    Ok(text.lines().filter_map(read).collect())
}

/// One client over one family: the app sees the client's address and port, and 1 MB goes each way.
fn moves(client: &PodHandle, server: &PodHandle, ip: IpAddr, port: u16, beside: bool) -> Result<()> {
    let (who, own) =
        (client.key(), client.ips().into_iter().find(|own| own.is_ipv4() == ip.is_ipv4()).context("an address")?);
    let told = client.run_client(&["connect", &at(ip, WHOAMI), "--expect", "0", "--source-port", &port.to_string()])?;
    let seen = told["text"].as_str().unwrap_or_default().split(' ').next().unwrap_or_default();
    ensure!(seen == at(own, port), "the app saw {who} as {seen}, not as {}: {told}", at(own, port));

    let (to, source) = (at(ip, BULK), (port + 1).to_string());
    let mut args = vec!["bulk", &to, "--source-port", &source];
    args.extend(BULK_ARGS);
    let bulk = client.client(&format!("bulk-{}", family(ip)), &args)?;
    // In the server's network: the client's connection, and the two ends of the one that stands for it towards the app.
    let plain = |ip: IpAddr, port: u16| format!("{ip}:{port}");
    let (remote, app) = (plain(own, port + 1), plain(ip, BULK));
    let mut last = Vec::new();
    wait::until_true("the connection and its double", CHANGE, || {
        last = established(server).unwrap_or_default();
        let doubled = last.contains(&(remote.clone(), app.clone())) && last.contains(&(app.clone(), remote.clone()));
        let live = last.iter().any(|(local, from)| {
            *from == remote && LANDING.map(|port| plain(ip, port)).any(|landing| *local == landing)
        });
        doubled && (live || !beside)
    })
    .with_context(|| format!("{who} over {}: {last:?}", family(ip)))?;
    let done = report(&bulk)?;
    ensure!(done["ok"] == 1 && done["up"] == 1_000_000 && done["down"] == 1_000_000, "{who} to {to}: {done}");
    Ok(())
}

/// Plaintext (the client's connection lies in the same network as its double), the same node, and through a tunnel.
fn everybody(lab: &Lab) -> Result<(PodHandle, Vec<(PodHandle, bool)>)> {
    let web = lab.add_pod(Pod::new("shop", "web"))?;
    let clients = vec![
        (lab.add_pod(Pod::new("outside", "near"))?, true),
        (lab.add_pod(Pod::new("outside", "far").node(2))?, true),
        (lab.add_pod(Pod::new("shop", "cart"))?, false),
        (lab.add_pod(Pod::new("shop", "courier").node(2))?, false),
    ];
    Ok((web, clients))
}

#[test]
fn a_spoofed_source_with_the_port_of_the_live_connection_moves_a_megabyte_and_so_does_that() -> Result<()> {
    let lab = mesh("source-port")?;
    let (web, clients) = everybody(&lab)?;
    for (client, _) in &clients[..2] {
        lab.allow("a stranger to the mesh", crate::support::Clear::of(client));
    }
    let mut port = 42_000;
    for (client, beside) in &clients {
        for ip in web.ips() {
            moves(client, &web, ip, port, *beside)?;
            port += 2;
        }
    }
    figure(
        "spoofed_source_pairs",
        (port - 42_000) / 2,
        "clients and families",
        "1 MB each way beside the live connection",
    );

    // The control: without the rules that steer answers to the proxy, the plaintext client's connection breaks.
    lab.mesh().watcher(1).kill()?;
    let near = &clients[0].0;
    let mut attempt = |ip: IpAddr| {
        port += 1;
        let (to, source) = (at(ip, ECHO), port.to_string());
        near.run_client(&["connect", &to, "--send", "hello", "--source-port", &source, "--timeout", "1500"])
    };
    for ip in web.ips() {
        let seen = attempt(ip)?;
        ensure!(seen["ok"] == 1, "with them, over {}: {seen}", family(ip));
    }
    web.exec_as(User::root(), &["nft", "flush", "chain", "inet", "culvert", "output_route"])?.ok()?;
    for ip in web.ips() {
        let seen = attempt(ip)?;
        ensure!(seen["ok"] == 0, "without them it worked all the same over {}: {seen}", family(ip));
    }
    lab.down()
}
