//! As without a mesh: one client and one server talk over plain pods and over each way of the mesh, and what both saw is compared: bytes,
//! ends, errors, and when (within a second). `docs/transparency.md` is what this harness writes (`BLESS=1`); a row is a run.

mod ends;
mod page;
mod play;
mod rows;
mod sockets;
mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::figure::figure;
use page::Told;
use play::Story;
use rows::{Expect, ROWS, Row};
use stage::{Pair, Stage};

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

/// What became of a row on one way over one family.
#[derive(Clone, Debug)]
struct Compared {
    way: Way,
    v6: bool,
    plain: Story,
    mesh: Story,
}

impl Compared {
    /// How the mesh differs from plain pods.
    fn difference(&self, row: &Row) -> Option<String> {
        let Compared { way, v6, plain, mesh } = self;
        let family = if *v6 { "IPv6" } else { "IPv4" };
        let how = match plain.said() == mesh.said() {
            false => format!("plain {:?}, mesh {:?}", plain.said(), mesh.said()),
            true => plain.later(mesh)?,
        };
        Some(format!("{} ({}, {family}): {how}", row.name, way.name()))
    }
}

/// Plays a row on all of its ways, at once unless they would meet each other at a port.
fn run(stage: &Stage, number: usize, row: &Row) -> Result<Vec<Compared>> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (index, way) in row.ways.iter().enumerate() {
            for v6 in [false, true] {
                let port = row.port.unwrap_or((20_000 + number * 64 + index * 4 + usize::from(v6) * 2) as u16);
                // Both may have the same server, and play at the same time.
                let beside = if row.port.is_some() { port } else { port + 32 };
                let play = |pair: Pair, port| {
                    let thread = scope.spawn(move || play::act(row, &pair, v6, port));
                    while row.port.is_some() && !thread.is_finished() {
                        std::thread::park_timeout(Duration::from_millis(5));
                    }
                    thread
                };
                let plain = play(stage.plain(*way), port);
                running.push((*way, v6, plain, play(stage.mesh(*way, row.pods), beside)));
            }
        }
        let ended = |what: &str, thread: std::thread::ScopedJoinHandle<'_, Result<Story>>| {
            let story = thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
            story.with_context(|| format!("{}, {what}", row.name))
        };
        let compared = running.into_iter().map(|(way, v6, plain, mesh)| {
            Ok(Compared { way, v6, plain: ended("plain", plain)?, mesh: ended(way.name(), mesh)? })
        });
        compared.collect()
    })
}

/// Rows that are played at the same time: most of a row is waiting.
const AT_ONCE: usize = 4;

/// Plays all rows. Those that are `alone` come last, one after the other and from the end of the list: filters that cut a pod off come
/// before those that do not, while it has no tunnel that they would leave hanging.
fn run_all(stage: &Stage) -> Vec<(&'static Row, Result<Vec<Compared>>)> {
    let (alone, together): (Vec<_>, Vec<_>) = ROWS.iter().enumerate().partition(|(_, row)| row.alone);
    let mut told = Vec::new();
    for some in together.chunks(AT_ONCE).chain(alone.rchunks(1)) {
        std::thread::scope(|scope| {
            let playing: Vec<_> =
                some.iter().map(|&(number, row)| (row, scope.spawn(move || run(stage, number, row)))).collect();
            told.extend(playing.into_iter().map(|(row, thread)| {
                (row, thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("{} panicked", row.name))))
            }));
        });
    }
    told
}

fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/transparency.md")
}

#[test]
#[allow(clippy::print_stdout)] // What differs is for a person.
fn every_way_of_the_mesh_is_as_plain_pods_are_or_as_the_page_says() -> Result<()> {
    let started = std::time::Instant::now();
    let stage = Stage::open()?;
    let mut told: Vec<Told> = Vec::new();
    let mut wrong = Vec::new();
    for (row, compared) in run_all(&stage) {
        let compared = match compared {
            Ok(compared) => compared,
            Err(error) => {
                wrong.push(format!("{error:#}"));
                continue;
            }
        };
        let differences: Vec<String> = compared.iter().filter_map(|one| one.difference(row)).collect();
        differences.iter().for_each(|text| println!("differs: {text}"));
        match row.expect {
            Expect::Same => wrong.extend(differences),
            Expect::Differs(_) if differences.is_empty() => {
                wrong.push(format!("{}: the page says that it differs, and it does not any more", row.name));
            }
            Expect::Differs(_) => {}
        }
        told.push(Told { row, compared });
    }
    figure("transparency", format!("{} rows in {:.0}", ROWS.len(), started.elapsed().as_secs_f64()), "s", "");
    ensure!(wrong.is_empty(), "{} differences that the page does not explain:\n{}", wrong.len(), wrong.join("\n"));
    let page = page::write(&told)?;
    let path = page_path();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page)?;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(
        committed == page,
        "docs/transparency.md is not what was seen; look at the difference, then BLESS=1:\n{page}"
    );
    stage.down()
}

#[test]
fn the_committed_page_has_a_run_of_every_row_and_nothing_that_is_no_row() -> Result<()> {
    let page = std::fs::read_to_string(page_path())?;
    for row in ROWS {
        ensure!(page.contains(&page::heading(row)), "{} has no run on the page: BLESS=1", row.name);
    }
    let headings = page::headings(&page);
    ensure!(headings == ROWS.len(), "{headings} rows on the page, {} here", ROWS.len());
    Ok(())
}
