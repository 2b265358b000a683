//! What strangers do makes no series and no memory: ports and addresses that nobody has seen before, peers and hosts that nobody knows.
//! A million of them at the real worker, over both families; where labels are made a million more (node-proxy's own tests).

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::{App, Config, Lab, MeshConfig, Pid, Pod, PodHandle, wait};
use mesh_model::{Identity, TrustDomain, TrustDomains};
use mesh_tls::WorkloadCert;
use mesh_tls::authority::Authority;
use tokio_rustls::rustls::{self, ClientConnection};

use crate::support::{self, figure};
use crate::{scrape, talk};

/// Attempts before anything is measured: allocator, thread stacks and every series that there is come with them.
const WARM: u32 = 2_000;
/// Attempts that are measured.
const ATTEMPTS: u32 = 1_000_000;
/// Clients at a time.
const AT_ONCE: u32 = 8;
/// One attempt in so many is a peer's: a handshake costs both sides a hundred times what a connection does.
const PEERS: u32 = 64;
/// How long freed memory has to go back to the kernel: the allocator keeps it 10 s.
const SETTLED: Duration = Duration::from_secs(25);

#[test]
fn new_ports_addresses_and_peers_add_no_series_and_no_memory_beyond_one_percent() -> Result<()> {
    let config = Config::default().name("cardinality").nodes(1).mesh(MeshConfig::default());
    let lab = support::lab(config)?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web"))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").app(App::None))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&stranger));
    talk::everyone_known(&lab, &[&cart, &web, &stranger])?;
    // Millions of addresses outside of the cluster, at none of which anybody listens.
    for (family, range) in [("-4", "100.64.0.0/10"), ("-6", "2001:db8:1::/104")] {
        lab.fabric().exec(&["ip", family, "route", "add", "local", range, "dev", "lo"])?.ok()?;
    }
    let worker = lab.mesh().worker_child(1)?;

    attempts(&lab, [&cart, &stranger, &web], 0..WARM)?;
    let (before, memory) = (series(&lab)?, settled(&worker)?);
    let begun = Instant::now();
    attempts(&lab, [&cart, &stranger, &web], WARM..WARM + ATTEMPTS)?;
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

/// Each a value nobody has used: an address outside of the cluster with a port; and one in [`PEERS`] a peer that shows another mesh's
/// certificate, with an identity of its own, and asks for a host of its own. All are refused.
fn attempts(lab: &Lab, [cart, stranger, web]: [&PodHandle; 3], numbers: Range<u32>) -> Result<()> {
    let other_mesh = OtherMesh::beside(lab)?;
    let ip = |n: u32| web.ips()[n as usize % web.ips().len()];
    std::thread::scope(|scope| {
        let mut all = vec![{
            let numbers = numbers.clone().filter(|n| n % PEERS == 0);
            scope
                .spawn(|| stranger.in_netns(|| numbers.into_iter().try_for_each(|n| other_mesh.peer(ip(n / PEERS), n))))
        }];
        all.extend((0..AT_ONCE).map(|lane| {
            let numbers = numbers.clone().filter(move |n| n % PEERS != 0 && n % AT_ONCE == lane);
            let ip = &ip;
            scope.spawn(move || {
                cart.in_netns(|| numbers.into_iter().try_for_each(|n| refused(elsewhere(ip(n / AT_ONCE), n))))
            })
        }));
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })
}

/// An address of this family outside of the cluster, and a port; no two numbers have the same.
fn elsewhere(like: IpAddr, n: u32) -> SocketAddr {
    let ip = match like {
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

/// Peers of another mesh that knows this one.
struct OtherMesh {
    authority: Authority,
    domains: TrustDomains,
    /// Of both meshes: a peer takes the worker's certificate, so that it is the worker that refuses.
    roots: String,
    called: [Identity; 1],
}

impl OtherMesh {
    fn beside(lab: &Lab) -> Result<OtherMesh> {
        let own = TrustDomain::parse("cluster.local")?;
        let authority = Authority::create()?;
        let root = std::fs::read_to_string(lab.dir().path().join("control-plane/root-cert.pem"))?;
        let roots = format!("{}{root}", authority.root_pem());
        let called = [Identity::new(own.clone(), "shop", "web")?];
        Ok(OtherMesh { authority, domains: TrustDomains::new(own, Vec::new()), roots, called })
    }

    fn peer(&self, ip: IpAddr, n: u32) -> Result<()> {
        let identity = Identity::new(self.domains.own().clone(), "shop", &format!("peer-{n}"))?;
        let (key, csr) = mesh_tls::csr(&identity)?;
        let mut chain = self.authority.sign(&csr, &identity, Duration::from_secs(600), SystemTime::now())?;
        chain.truncate(1);
        chain.push(self.roots.clone());
        let cert = WorkloadCert::assemble(key, chain, &identity)?;
        let mut config = (*mesh_tls::client_config(&cert, &self.domains, &self.called)).clone();
        config.enable_sni = true;
        let mut tls = ClientConnection::new(config.into(), format!("host-{n}.example").try_into()?)?;
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, 15008), talk::PATIENCE)?;
        stream.set_read_timeout(Some(talk::PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).with_context(|| format!("peer {n}, before it was refused"))?;
        }
        let met = rustls::Stream::new(&mut tls, &mut stream).read(&mut [0]);
        let refused = met.as_ref().is_err_and(|error| error.to_string().contains("alert"));
        ensure!(refused, "peer {n} was met by {met:?}");
        Ok(())
    }
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
