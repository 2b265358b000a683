//! As without a mesh: one client and one server talk over plain pods and over each way of the mesh, and what both saw is compared: bytes,
//! ends, errors, and when (within a second). `docs/transparency.md` is what this harness writes (`BLESS=1`); a row is a run.

mod page;
mod play;
mod rows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{App, Pod, PodHandle, Service};

use crate::support::{self, Clear, Watched};
use play::Story;
use rows::{Expect, NOT_YET, ROWS, Row};

/// One way from a client to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Both in the mesh, on one node.
    SameNode,
    /// Both in the mesh, on two nodes.
    Tunnel,
    /// A caller from outside of the mesh.
    In,
    /// A server outside of the mesh.
    Out,
    /// A pod and its own address.
    Own,
    /// A pod and a Service of its own.
    OwnService,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::SameNode => "same node",
            Way::Tunnel => "tunnel",
            Way::In => "plaintext in",
            Way::Out => "plaintext out",
            Way::Own => "own address",
            Way::OwnService => "own Service",
        }
    }
}

/// The pods of a way, and those it is compared with.
struct Pair {
    client: PodHandle,
    server: PodHandle,
    /// Called instead of the server's own address.
    vip: Vec<IpAddr>,
}

struct Stage {
    lab: Watched,
    plain: BTreeMap<Way, Pair>,
    mesh: BTreeMap<Way, Pair>,
}

impl Stage {
    fn open() -> Result<Stage> {
        let lab = support::mesh("transparency")?;
        let pod = |namespace: &str, name: &str, node| lab.add_pod(Pod::new(namespace, name).node(node).app(App::None));
        let (client, near, far) = (pod("shop", "client", 1)?, pod("shop", "near", 1)?, pod("shop", "far", 2)?);
        let (plain, beside, away) =
            (pod("outside", "plain", 1)?, pod("outside", "beside", 1)?, pod("outside", "away", 2)?);
        let own = rows::OWN_SERVICE;
        let vip = lab.service(Service::new("shop", "near").port(own, own))?;
        let pair = |client: &PodHandle, server: &PodHandle| Pair {
            client: client.clone(),
            server: server.clone(),
            vip: vec![],
        };
        for outsider in [&plain, &away] {
            lab.allow("a pod outside of the mesh", Clear::of(outsider));
        }
        crate::talk::everyone_known(&lab, &[&client, &near, &far, &plain, &beside, &away])?;
        let across = || pair(&plain, &away);
        Ok(Stage {
            plain: BTreeMap::from([
                (Way::SameNode, pair(&plain, &beside)),
                (Way::Tunnel, across()),
                (Way::In, across()),
                (Way::Out, across()),
                (Way::Own, pair(&plain, &plain)),
                // Nobody plays kube-proxy in a lab: an own Service is compared with the own address.
                (Way::OwnService, pair(&plain, &plain)),
            ]),
            mesh: BTreeMap::from([
                (Way::SameNode, pair(&client, &near)),
                (Way::Tunnel, pair(&client, &far)),
                (Way::In, pair(&plain, &far)),
                (Way::Out, pair(&client, &away)),
                (Way::Own, pair(&near, &near)),
                (Way::OwnService, Pair { vip, ..pair(&near, &near) }),
            ]),
            lab,
        })
    }
}

/// What became of a row on one way over one family.
#[derive(Clone, Debug)]
struct Compared {
    way: Way,
    v6: bool,
    plain: Story,
    mesh: Story,
}

/// Runs a row on all of its ways at once.
fn run(stage: &Stage, number: usize, row: &Row) -> Result<Vec<Compared>> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (index, way) in row.ways.iter().enumerate() {
            for v6 in [false, true] {
                let port = row.port.unwrap_or((20_000 + number * 64 + index * 4 + usize::from(v6) * 2) as u16);
                // Both may have the same server, and play at the same time.
                let beside = if row.port.is_some() { port } else { port + 32 };
                let of = |pairs: &BTreeMap<Way, Pair>, port| {
                    let pair = &pairs[way];
                    let (client, server, vip) = (pair.client.clone(), pair.server.clone(), pair.vip.clone());
                    scope.spawn(move || play::act(row, &client, &server, &vip, v6, port))
                };
                running.push((*way, v6, of(&stage.plain, port), of(&stage.mesh, beside)));
            }
            if row.port.is_some() || row.alone {
                // These would meet each other at the port, or in the pod's rules.
                for (_, _, plain, mesh) in &running {
                    while !(plain.is_finished() && mesh.is_finished()) {
                        std::thread::park_timeout(std::time::Duration::from_millis(5));
                    }
                }
            }
        }
        let ended = |what: &str, thread: std::thread::ScopedJoinHandle<'_, Result<Story>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))
                .with_context(|| format!("{}, {what}", row.name))
        };
        running
            .into_iter()
            .map(|(way, v6, plain, mesh)| {
                Ok(Compared { way, v6, plain: ended("plain", plain)?, mesh: ended(way.name(), mesh)? })
            })
            .collect()
    })
}

/// How a way differs from plain pods; empty when it does not.
fn difference(row: &Row, compared: &Compared) -> String {
    let Compared { way, v6, plain, mesh } = compared;
    let family = if *v6 { "IPv6" } else { "IPv4" };
    let mut text = String::new();
    if plain.said() != mesh.said() {
        let _ =
            write!(text, "{} ({}, {family}): plain {:?}, mesh {:?}", row.name, way.name(), plain.said(), mesh.said());
    } else if let Some(late) = plain.later(mesh) {
        let _ = write!(text, "{} ({}, {family}): {late}", row.name, way.name());
    }
    text
}

#[test]
// It cannot pass before docs/transparency.md exists: BLESS=1 writes it. Then this goes.
#[ignore = "shows nothing yet: its page docs/transparency.md has not been made"]
#[allow(clippy::print_stdout)] // What differs is for a person.
fn every_way_of_the_mesh_is_as_plain_pods_are_or_as_the_page_says() -> Result<()> {
    let stage = Stage::open()?;
    let mut told: Vec<(&Row, Vec<Compared>)> = Vec::new();
    let mut wrong = Vec::new();
    for (number, row) in ROWS.iter().enumerate() {
        let compared = match run(&stage, number, row) {
            Ok(compared) => compared,
            Err(error) => {
                wrong.push(format!("{error:#}"));
                continue;
            }
        };
        let differences: Vec<String> =
            compared.iter().map(|one| difference(row, one)).filter(|text| !text.is_empty()).collect();
        let mended_later = NOT_YET.contains(&row.name);
        for text in &differences {
            println!("{}: {text}", if mended_later { "not yet" } else { "differs" });
        }
        match row.expect {
            _ if mended_later => {}
            Expect::Same => wrong.extend(differences),
            Expect::Differs(_) if differences.is_empty() => {
                wrong.push(format!("{}: the page says that it differs, and it does not any more", row.name));
            }
            Expect::Differs(_) => {}
        }
        told.push((row, compared));
    }
    let page = page::write(&told);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/transparency.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page)?;
    }
    ensure!(wrong.is_empty(), "{} differences that the page does not explain:\n{}", wrong.len(), wrong.join("\n"));
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        committed == page,
        "docs/transparency.md is not what was seen; look at the difference, then BLESS=1:\n{page}"
    );
    stage.lab.down()
}

#[test]
fn every_name_in_the_list_of_what_is_not_yet_so_is_a_row() {
    for name in NOT_YET {
        assert!(ROWS.iter().any(|row| row.name == *name), "{name} is no row");
    }
}
