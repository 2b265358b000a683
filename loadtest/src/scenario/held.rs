//! Many connections held open at once: over as many pairs of pods as the plane has room for, for a mesh lets no pod take all its
//! node's places, and a machine may grant a process few descriptors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Pid, PodHandle};
use rustix::process::{Resource, getrlimit};

use super::Context;
use super::context::Client;
use crate::measure::cores;
use crate::path::{Place, Side};
use crate::plane::{ECHO, Room, Server};
use crate::traffic::{Report, Work};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Pods that hold connections, beside the bench's own pair.
pub(super) struct Holders<'a> {
    cx: &'a Context<'a>,
    shares: Vec<usize>,
    extra: Vec<(PodHandle, Server)>,
}

/// Open connections. Dropped, they close.
pub(super) struct Held(Vec<Client>);

impl<'a> Holders<'a> {
    /// For `count` connections on this path, or as many as there is room for.
    pub(super) fn new(cx: &'a Context<'a>, count: usize) -> Result<Holders<'a>> {
        let shares = shares(count, cx.plane.room()?);
        let there: usize = shares.iter().sum();
        if there < count {
            cx.note(format!(
                "{there} connections instead of {count}: the plane's proxy has room for no more with the {} descriptors that this \
                 machine grants a process",
                descriptors()
            ));
        }
        let mut holders = Holders { cx, shares, extra: Vec::new() };
        let node = if cx.path.place == Place::SameNode { 1 } else { 2 };
        for _ in 1..holders.shares.len() {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let client = cx.plane.add_client(&format!("holder-{number}"))?;
            let server = cx.plane.add_server(&format!("held-{number}"), node)?;
            cores::pin(&server.process.id(), cx.path.layout.core(Side::Server))?;
            holders.extra.push((client, server));
        }
        Ok(holders)
    }

    /// How many there will be.
    pub(super) fn count(&self) -> usize {
        self.shares.iter().sum()
    }

    /// The service accounts of the clients.
    pub(super) fn accounts(&self) -> Vec<String> {
        let own = std::iter::once(&self.cx.plane.pods().client);
        own.chain(self.extra.iter().map(|(client, _)| client)).map(|pod| pod.record().pod.service_account).collect()
    }

    /// The processes of the plane that carry them, at this side.
    pub(super) fn proxies(&self, side: Side) -> Result<Vec<Pid>> {
        let pods = self.cx.plane.pods();
        let clients: Vec<&PodHandle> =
            std::iter::once(&pods.client).chain(self.extra.iter().map(|(client, _)| client)).collect();
        let servers: Vec<&PodHandle> = std::iter::once(pods.server(self.cx.path.place))
            .chain(self.extra.iter().map(|(_, server)| &server.pod))
            .collect();
        self.cx.plane.proxies_of(&clients, &servers, side)
    }

    /// Puts those on the cores of their sides, as [`Context::pin`] does with the bench's own.
    pub(super) fn pin(&self) -> Result<()> {
        self.cx.pin()?;
        for side in [Side::Client, Side::Server] {
            let core = self.cx.path.layout.core(side);
            self.proxies(side)?.iter().try_for_each(|pid| cores::pin(pid, core))?;
        }
        Ok(())
    }

    /// Opens them.
    pub(super) fn open(&self) -> Result<Held> {
        let cx = self.cx;
        let first = cx.client(&cx.plane.pods().client, ECHO, Work::Hold { connections: self.shares[0] })?;
        let mut clients = vec![first];
        for ((pod, server), share) in self.extra.iter().zip(&self.shares[1..]) {
            let to = server.address(cx.path.family, ECHO)?;
            clients.push(cx.client_to(pod, to, Work::Hold { connections: *share })?);
        }
        clients.iter().try_for_each(Client::begin)?;
        Ok(Held(clients))
    }

    /// Takes the pods away that were made for it.
    pub(super) fn away(self) -> Result<()> {
        let plane = self.cx.plane;
        self.extra.into_iter().try_for_each(|(client, server)| {
            plane.remove(&client)?;
            server.process.kill()?;
            plane.remove(&server.pod)
        })
    }
}

impl Held {
    /// Tells the clients to close them.
    pub(super) fn end(&self) -> Result<()> {
        self.0.iter().try_for_each(Client::end)
    }

    /// All clients' reports in one: connections together, the time of the slowest, the first and the last cut.
    pub(super) fn report(self, at_most: Duration) -> Result<Report> {
        let reports: Vec<Report> = self.0.into_iter().map(|client| client.report(at_most)).collect::<Result<_>>()?;
        let cuts: Vec<(u64, u64, u64)> = reports.iter().filter_map(|report| report.cut).collect();
        let cut = |(count, first, last): (u64, u64, u64), next: &(u64, u64, u64)| {
            (count + next.0, first.min(next.1), last.max(next.2))
        };
        let all = Report {
            done: reports.iter().map(|report| report.done).sum(),
            seconds: reports.iter().map(|report| report.seconds).sum(),
            cut: (!cuts.is_empty()).then(|| cuts.iter().fold((0, u64::MAX, 0), cut)),
            ..Report::default()
        };
        ensure!(reports.iter().all(|report| report.failed == 0), "connections failed: {reports:?}");
        Ok(all)
    }
}

/// What a process of this machine may have open at most; root here may not raise it everywhere.
fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Connections of each pair of pods.
fn shares(count: usize, room: Room) -> Vec<usize> {
    let count = count.min(room.all);
    let pairs = count.div_ceil(room.each.max(1)).max(1);
    (0..pairs).map(|pair| count / pairs + usize::from(pair < count % pairs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pair_has_more_than_its_room_and_together_they_have_all_there_is_room_for() {
        let check = |count, all, each, should: &[usize]| assert_eq!(shares(count, Room { all, each }), should);
        check(10_000, usize::MAX, usize::MAX, &[10_000]);
        check(10_000, 8_700, 4_000, &[2_900, 2_900, 2_900]);
        check(5_000, 8_700, 4_350, &[2_500, 2_500]);
        check(7, 100, 3, &[3, 2, 2]);
        check(0, 100, 3, &[0]);
    }
}
