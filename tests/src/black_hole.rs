//! A destination that never answers a connect is given up when the mesh's setting says, whoever connects: the caller, whose own connect
//! has succeeded, is reset.

use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{App, Config, MeshConfig, Pod};

use crate::support::{self, CHANGE, family, figure};
use crate::talk::{self, field};
use crate::ways::{Way, Ways};

const PORT: u16 = 9821;
/// Neither the default nor what a kernel does by itself.
const SETTING: Duration = Duration::from_secs(3);
/// For the machine, and for what comes before the connect.
const LATE: Duration = Duration::from_secs(1);

/// After which time a caller learns that nobody answers.
fn learns(way: &Way, ip: IpAddr) -> Result<Duration> {
    let since = Instant::now();
    let mut client = way.connect(ip, PORT)?;
    client.set_read_timeout(Some(SETTING + CHANGE))?;
    match client.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(since.elapsed()),
        other => anyhow::bail!("{other:?} after {:?}", since.elapsed()),
    }
}

#[test]
fn a_black_hole_is_given_up_after_the_meshs_setting_on_every_way() -> Result<()> {
    let worker_args = ["--connect-timeout-seconds".to_owned(), SETTING.as_secs().to_string()].into();
    let mesh = MeshConfig { worker_args, ..MeshConfig::default() };
    let ways = Ways::open(support::lab(Config::default().name("black-hole").mesh(mesh))?)?;
    let dead = ways.lab.add_pod(Pod::new("shop", "dead").node(2).app(App::None))?;
    talk::everyone_known(&ways.lab, &[&dead])?;
    let [_, tunnel, near, inward, out] = ways.all();
    // Of the first four the application hears nothing, of the last not even its proxy.
    let silent = Way { name: "tunnel to a silent proxy", client: tunnel.client.clone(), server: dead };
    for way in [&tunnel, &near, &inward, &out] {
        Way::drop_at(&way.server, &format!("tcp dport {PORT}"))?;
    }
    Way::drop_at(&silent.server, "tcp dport 15008")?;

    let all = [tunnel, near, inward, out, silent];
    let learning: Vec<_> = all
        .iter()
        .flat_map(|way| way.server.ips().into_iter().map(move |ip| (way.clone(), ip)))
        .map(|(way, ip)| (way.name, ip, std::thread::spawn(move || learns(&way, ip))))
        .collect();
    for (name, ip, thread) in learning {
        let took = thread.join().ok().context("a thread")?.with_context(|| format!("{name}, {}", family(ip)))?;
        let what = format!("black_hole_{}_{}", name.replace(' ', "_"), family(ip));
        figure(&what, format!("{:.2}", took.as_secs_f64()), "s", "");
        ensure!(took >= SETTING && took <= SETTING + LATE, "{name}, {}: given up after {took:?}", family(ip));
    }
    let told = |line: &serde_json::Value| field(line, "reason") == "ConnectTimeout";
    lab::wait::until_true("each caller's log to say why", CHANGE, || {
        talk::lines(&ways.lab).iter().filter(|line| told(line) && !talk::is_inbound(line)).count() == 8
    })?;
    ways.lab.down()
}
