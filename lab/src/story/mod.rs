//! What `culvert-lab` tells without a verb: each step is done, timed and shown; at the end a table, and the exit code.

mod figures;
mod plain;
mod teller;
mod traffic;
mod trouble;

use std::process::ExitCode;

use anyhow::{Context, Result};
use lab::{Lab, PodHandle, binaries, interrupt, state};

use crate::cli::Story;
use crate::verbs;
use teller::Teller;

/// The lab of the story and its cast.
struct Cast {
    lab: Lab,
    /// In the mesh, node 1, account `cart`.
    cart: PodHandle,
    /// In the mesh, node 1, account `guest`.
    guest: PodHandle,
    /// In the mesh, node 1, account `web`, behind the service.
    near: PodHandle,
    /// In the mesh, the last node, account `web`, behind the service.
    far: PodHandle,
    /// Not in the mesh, node 1.
    stranger: PodHandle,
    /// Not in the mesh, the last node.
    other: PodHandle,
}

/// Tells the story. The exit code says whether every step held.
pub(crate) fn run(options: &Story) -> Result<ExitCode> {
    let name = &options.topology.name;
    let mut teller = Teller::new(options.json.clone());
    let mesh = !options.topology.no_mesh;
    binaries::check(mesh && verbs::mesh_is_built())?;
    interrupt::take_down_on_signal(&state::Dir::of(name)?)?;
    let mut topology = options.topology.clone();
    if mesh && !verbs::mesh_is_built() {
        topology.no_mesh = true;
        teller.step::<()>("the mesh's binaries are there", |_| {
            anyhow::bail!(
                "not beside culvert-lab in {}: build them (cargo xtask lab does); going on without a mesh",
                binaries::dir()?.display()
            )
        });
    }
    let what = if topology.no_mesh { "nodes, fabric" } else { "nodes, fabric, mesh" };
    let made = teller.step(&format!("{what}: up"), |teller| {
        let start = std::time::Instant::now();
        let lab = Lab::up(verbs::config(&topology))?;
        teller.figure("up_ms", start.elapsed().as_secs_f64() * 1e3);
        let detail = format!("{} nodes on the fabric {}", lab.nodes().len(), fabric_ranges(&lab));
        Ok((lab, detail))
    });
    if let Some(lab) = made {
        acts(&mut teller, lab, options)?;
    }
    interrupt::wait_if_stopping();
    teller.finish()
}

fn fabric_ranges(lab: &Lab) -> String {
    lab.nodes().iter().map(|n| format!("{}={}", n.name(), verbs::join(&n.ips()))).collect::<Vec<_>>().join(", ")
}

fn acts(teller: &mut Teller, lab: Lab, options: &Story) -> Result<()> {
    let populated = teller.step("pods through the CNI chain", |teller| {
        verbs::populate(&lab)?;
        let mut times: Vec<f64> = Vec::new();
        for pod in lab.pods() {
            let chain: f64 = pod.added().times.iter().map(|(_, time)| time.as_secs_f64() * 1e3).sum();
            times.push(chain);
        }
        let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
        teller.figure("add_chain_mean_ms", mean);
        Ok(((), format!("{} pods, the chain took {mean:.0} ms each", times.len())))
    });
    let name = lab.name().to_owned();
    match populated {
        Some(()) => {
            let cast = Cast::find(lab)?;
            if cast.lab.has_mesh() {
                traffic::tell(teller, &cast);
                trouble::tell(teller, &cast);
                figures::tell(teller, &cast, options.pods);
            } else {
                plain::tell(teller, &cast);
            }
            end(teller, cast.lab, options)?;
        }
        None => end(teller, lab, options)?,
    }
    if !options.keep {
        teller.step("nothing is left on this machine", |_| {
            let left = state::leftovers(&name);
            anyhow::ensure!(left.is_empty(), "left: {}", left.join(", "));
            Ok(((), "no process, namespace, cgroup or directory".to_owned()))
        });
    }
    Ok(())
}

fn end(teller: &mut Teller, lab: Lab, options: &Story) -> Result<()> {
    if options.keep {
        let try_this = verbs::to_try(lab.name());
        lab.keep()?;
        teller.say(&format!("\nThe lab stays up. Try:\n{try_this}"));
    } else {
        teller.step("taken down", |_| {
            lab.down()?;
            Ok(((), String::new()))
        });
    }
    Ok(())
}

impl Cast {
    fn find(lab: Lab) -> Result<Cast> {
        let pod = |namespace: &str, name: &str| {
            lab.pod(namespace, name).with_context(|| format!("no pod {namespace}/{name}"))
        };
        Ok(Cast {
            cart: pod("shop", "cart")?,
            guest: pod("shop", "guest")?,
            near: pod("shop", "web-1")?,
            far: pod("shop", "web-2")?,
            stranger: pod("outside", "stranger")?,
            other: pod("outside", "other")?,
            lab,
        })
    }
}

/// `address:port`, IPv6 in brackets.
fn at(ip: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// The word for an address's family.
fn family(ip: std::net::IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}
