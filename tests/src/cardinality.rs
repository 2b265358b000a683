//! What strangers do makes no series and no memory: ports and addresses that nobody has seen before, peers that show no certificate.
//! The million is tried where labels are made (node-proxy's own tests); here the real worker is shown to be no different.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{App, Config, Lab, MeshConfig, Pid, Pod, PodHandle, wait};

use crate::support::{self, figure};
use crate::{scrape, talk};

/// Attempts before anything is measured: allocator, thread stacks and every series that there is come with them.
const WARM: u32 = 2_000;
/// Attempts that are measured.
const ATTEMPTS: u32 = 100_000;
/// Clients at a time.
const AT_ONCE: u32 = 8;
/// How long freed memory has to go back to the kernel: the allocator keeps it 10 s.
const SETTLED: Duration = Duration::from_secs(25);

#[test]
fn new_ports_addresses_and_peers_add_no_series_and_no_memory_beyond_one_percent() -> Result<()> {
    let config = Config::default().name("cardinality").nodes(1).mesh(MeshConfig::default());
    let lab = support::lab(config)?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web"))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").app(App::None))?;
    talk::everyone_known(&lab, &[&cart, &web, &stranger])?;
    // Millions of addresses outside of the cluster, at none of which anybody listens.
    for (family, range) in [("-4", "100.64.0.0/10"), ("-6", "2001:db8:1::/104")] {
        lab.fabric().exec(&["ip", family, "route", "add", "local", range, "dev", "lo"])?.ok()?;
    }
    let worker = lab.mesh().worker_child(1)?;

    attempts(&cart, &stranger, &web, 0..WARM)?;
    let (before, memory) = (series(&lab)?, settled(&worker)?);
    let begun = Instant::now();
    attempts(&cart, &stranger, &web, WARM..WARM + ATTEMPTS)?;
    let rate = f64::from(ATTEMPTS) / begun.elapsed().as_secs_f64();
    let peak = resident(&worker)?;
    let now = series(&lab)?;
    let more: Vec<&String> = now.difference(&before).collect();
    ensure!(more.is_empty(), "{} series came: {more:?}", more.len());
    let limit = memory + memory / 100;
    let mut last = peak;
    wait::until_true("the worker's memory to be what it was", SETTLED, || {
        last = resident(&worker).unwrap_or(u64::MAX);
        last <= limit
    })
    .with_context(|| format!("{memory} bytes before, {last} after {ATTEMPTS} attempts"))?;
    figure("series after new label values", now.len(), "series", &format!("{ATTEMPTS} attempts, {rate:.0} per second"));
    let change = 100.0 * (last as f64 / memory as f64 - 1.0);
    let note = format!("{memory} bytes before, {peak} right after, {last} settled");
    figure("worker memory after new label values", format!("{change:+.2}"), "%", &note);
    Ok(())
}

/// Each a value nobody has used: ports of a pod at which nobody listens, addresses outside of the cluster, peers without a certificate.
/// All are refused.
fn attempts(cart: &PodHandle, stranger: &PodHandle, web: &PodHandle, numbers: Range<u32>) -> Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..AT_ONCE)
            .map(|lane| {
                let numbers = numbers.clone().filter(move |n| n % AT_ONCE == lane);
                let from = if lane == 0 { stranger } else { cart };
                let ips = web.ips();
                scope.spawn(move || {
                    from.in_netns(|| {
                        numbers.into_iter().try_for_each(|n| {
                            let ip = ips[(n / AT_ONCE) as usize % ips.len()];
                            if lane == 0 { unknown_peer(ip) } else { refused(elsewhere(ip, n, lane % 2 == 0)) }
                        })
                    })
                })
            })
            .collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// A port of this address, or an address of its family outside of the cluster. The ports of the mesh and of the app lie below.
fn elsewhere(ip: IpAddr, n: u32, other_address: bool) -> SocketAddr {
    let ip = match ip {
        _ if !other_address => ip,
        IpAddr::V4(_) => Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n).into(),
        IpAddr::V6(_) => {
            Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0)) + u128::from(n)).into()
        }
    };
    SocketAddr::new(ip, 20_000 + u16::try_from(n % 40_000).unwrap_or_default())
}

fn refused(to: SocketAddr) -> Result<()> {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, talk::PATIENCE) else { return Ok(()) };
    stream.set_read_timeout(Some(talk::PATIENCE))?;
    let read = stream.read(&mut [0]);
    let reset = read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    ensure!(reset, "{to}: {read:?}");
    Ok(())
}

fn unknown_peer(ip: IpAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, 15008), talk::PATIENCE)?;
    stream.set_read_timeout(Some(talk::PATIENCE))?;
    stream.write_all(b"hello, I am nobody\r\n")?;
    // An alert, then the end.
    let _ = stream.read_to_end(&mut Vec::new());
    Ok(())
}

/// Every series of the worker, by name and labels.
fn series(lab: &Lab) -> Result<BTreeSet<String>> {
    Ok(scrape::series(&lab.mesh().worker_metrics(1)?)?
        .iter()
        .map(|one| format!("{} {:?}", one.name, one.labels()))
        .collect())
}

/// What the process holds of memory of its own. Pages of its program do not count: which of them a busy machine has dropped and reads
/// again is not up to a stranger.
fn resident(pid: &Pid) -> Result<u64> {
    let text = pid.status("RssAnon").context("memory of a living process")?;
    Ok(text.trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// Resident memory once it does not fall any more: three looks in a row, a second apart by the allocator's own steps, that are the same.
fn settled(pid: &Pid) -> Result<u64> {
    let (mut last, mut since) = (resident(pid)?, Instant::now());
    wait::until("the worker's memory to settle", SETTLED, || {
        let now = resident(pid).ok()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= Duration::from_secs(3)).then_some(now)
    })
}
