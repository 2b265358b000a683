//! From a pod's application to wherever it wants to go.
//!
//! Accepted → identified (the listener's pod) → routed → authorized → connected → copied. Routing comes before authorization here
//! because what is judged is the endpoint, and only for pods of this node; for others the far end judges.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::{Mesh, OrigDst, Reason};
use tokio::sync::OwnedSemaphorePermit;

use super::accept::Accepted;
use super::authorize::{self, Authorized, To};
use super::baggage;
use super::connect::{self, Asking, Reached};
use super::connection::{Connection, Phase};
use super::copy;
use super::identify::{self, Identified};
use super::live::{self, Judged, Ticket};
use super::metrics::Security;
use super::pods::Pod;
use super::record::{Record, Refusal};
use super::route::{self, Load, NoRoute, Routed, Target, View};
use super::threads::{Proxy, Thread};

/// How long a destination inside the cluster's ranges may wait for its record.
const RECORD: Duration = Duration::from_secs(1);

/// Serves one connection to its end.
pub async fn serve(accepted: Accepted, here: Arc<Thread>) {
    let (caller, pod, connection, _place) = accepted.into_parts();
    let _ticket = live::enter(&pod, &connection);
    let mut record = Record::new(&here.proxy.sinks, &connection, &pod);
    let (mint, slot) = (&here.dialer.mint, pod.slot());
    let is_orphan = |near, far| mint.is_orphan(slot, far, near);
    // Boxed: the set-up is large and short, the copying that follows small and long. Dropping it half-way closes what it had opened.
    let set_up = Box::pin(caller.while_there(set_up(&here, &pod, &connection, &mut record), is_orphan));
    let opened = tokio::select! {
        biased;
        cause = connection.was_cut() => Err(cause.into()),
        opened = set_up => opened,
    };
    let Open { reached, load, far_end } = match opened {
        Ok(open) => open,
        Err(refusal) => {
            drop(caller);
            return record.refused(&refusal);
        }
    };
    let mut taps: Vec<_> = record.opened().into_iter().collect();
    let far_end = far_end.map(|far_end| {
        let FarEnd { ticket, room, mut record } = *far_end;
        taps.extend(record.opened());
        (ticket, room, record)
    });
    connection.meter(taps);
    let Some(caller) = caller.into_end() else { return };
    let ended = copy::duplex(reached.join(caller), &connection).await;
    drop(load);
    if let Some((_ticket, _room, record)) = far_end {
        record.ended(&ended);
    }
    record.ended(&ended);
}

/// A connection whose destination is reached.
struct Open {
    reached: Reached,
    load: Load,
    far_end: Option<Box<FarEnd>>,
}

/// The called pod's side, when it is of this node.
struct FarEnd {
    ticket: Ticket,
    room: OwnedSemaphorePermit,
    record: Record,
}

async fn set_up(
    here: &Thread,
    pod: &Arc<Pod>,
    connection: &Arc<Connection>,
    record: &mut Record,
) -> Result<Open, Refusal> {
    let identified = identify::outbound(pod, connection.client, connection.destination)?;
    let (mesh, routed) = match look(&here.proxy, &identified) {
        // The rare branch is boxed.
        Err((_, no_route)) if no_route.may_change() => Box::pin(wait_for_record(&here.proxy, &identified)).await?,
        Err((_, no_route)) => return Err(no_route.into()),
        Ok(found) => found,
    };
    let asking = Asking { id: connection.id, service_host: None, baggage: baggage(&here.proxy, pod, &mesh) };
    let (service, targets) = match routed {
        Routed::Outside(destination) => {
            return outside(here, &identified, destination, asking, connection, record).await;
        }
        Routed::Inside { service, targets } => (service, targets),
    };
    if let Some(service) = &service {
        record.service(&service.key);
    }
    let mut last = Refusal::of(Reason::Internal, "a route without an endpoint");
    for target in targets {
        let asking =
            Asking { service_host: service.as_ref().map(|service| service.key.hostname.clone()), ..asking.clone() };
        match endpoint(here, &identified, &mesh, &target, asking, connection, record).await {
            Ok(open) => return Ok(open),
            Err(Failed { refusal, try_another }) => {
                last = refusal;
                if !try_another {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// An endpoint could not be reached.
struct Failed {
    refusal: Refusal,
    try_another: bool,
}

impl Failed {
    fn for_good(refusal: impl Into<Refusal>) -> Self {
        Self { refusal: refusal.into(), try_another: false }
    }
}

async fn endpoint(
    here: &Thread,
    identified: &Identified,
    mesh: &Arc<Mesh>,
    target: &Target,
    asking: Asking,
    connection: &Arc<Connection>,
    record: &mut Record,
) -> Result<Open, Failed> {
    record.endpoint(target.address(), target.pod_name(), target.identity());
    let (route, security) = match target.way() {
        route::Way::Short(_) => ("same-node", Security::SameNode),
        route::Way::Tunnel { .. } => ("tunnel", Security::MutualTls),
        route::Way::Clear => ("clear", Security::Plain),
    };
    record.route(route, security);
    let mut mesh = mesh.clone();
    let mut judged = authorize::outbound(&mesh, identified, target);
    if let Err(denied) = &judged
        && here.proxy.knows_more(denied).await
    {
        mesh = here.proxy.mesh();
        judged = authorize::outbound(&mesh, identified, target);
    }
    // A pair of this node is seen from both its ends, also when nothing comes of it.
    let told = |record: &Record, refusal: Refusal| {
        if let route::Way::Short(pod) = target.way() {
            Record::of_far_end(record, pod).refused(&refusal);
        }
        refusal
    };
    let authorized = judged.map_err(|denied| Failed::for_good(told(record, denied.into())))?;
    record.authorized(&authorized);
    connection.reached(Phase::Judged);
    let room = called_room(&authorized).map_err(|refusal| Failed::for_good(told(record, refusal)))?;
    // Before the connect: should the called pod leave meanwhile, its end of this connection is among those that it cuts.
    let called = room.map(|(pod, room)| (pod, room, live::enter(pod, connection)));
    let load = here.proxy.loads.enter(target.address());
    let reached = connect::open(&here.dialer, &authorized, asking)
        .await
        .map_err(|error| Failed { try_another: error.try_another(), refusal: told(record, error.into()) })?;
    connection.reached(Phase::Connected);
    let far_end = called.map(|(pod, room, ticket)| {
        if let Some(permit) = authorized.permit() {
            let judged = Judged::ShortWay { source: identified.pod().clone() };
            ticket.judged(permit, judged, &mesh, || here.proxy.mesh(), &here.proxy.waiting);
        }
        Box::new(FarEnd { ticket, room, record: Record::of_far_end(record, pod) })
    });
    Ok(Open { reached, load, far_end })
}

/// A place in the called pod's budget, when it is of this node.
fn called_room(authorized: &Authorized) -> Result<Option<(&Arc<Pod>, OwnedSemaphorePermit)>, Refusal> {
    let To::App { pod, .. } = authorized.to() else { return Ok(None) };
    let room = pod.room().ok_or_else(|| {
        Refusal::of(Reason::Overloaded, format!("pod {} has used up its budget of connections", pod.name()))
    })?;
    Ok(Some((pod, room)))
}

async fn outside(
    here: &Thread,
    identified: &Identified,
    destination: OrigDst,
    asking: Asking,
    connection: &Connection,
    record: &mut Record,
) -> Result<Open, Refusal> {
    record.route("passthrough", Security::Plain);
    let authorized = authorize::outside(identified, destination);
    connection.reached(Phase::Judged);
    let load = here.proxy.loads.enter(destination.addr());
    let reached = connect::open(&here.dialer, &authorized, asking).await?;
    connection.reached(Phase::Connected);
    Ok(Open { reached, load, far_end: None })
}

type Looked = Result<(Arc<Mesh>, Routed), (IpAddr, NoRoute)>;

fn look(proxy: &Proxy, identified: &Identified) -> Looked {
    let (mesh, table) = (proxy.mesh(), proxy.pods.table());
    let destination = identified.destination();
    let view = View {
        mesh: &mesh,
        table: &table,
        node: &proxy.settings.node,
        ranges: &proxy.settings.ranges,
        loads: &proxy.loads,
        now: Instant::now(),
    };
    match route::resolve(view, identified.pod(), identified.client().ip(), destination) {
        Ok(routed) => Ok((mesh, routed)),
        Err(no_route) => Err((destination.ip(), no_route)),
    }
}

/// Looks again whenever the mesh or this node's pods change, up to the deadline.
async fn wait_for_record(proxy: &Proxy, identified: &Identified) -> Result<(Arc<Mesh>, Routed), Refusal> {
    let (mut mesh, mut pods) = (proxy.published.clone(), proxy.pods.follow());
    let deadline = tokio::time::Instant::now() + RECORD;
    loop {
        mesh.mark_unchanged();
        pods.mark_unchanged();
        let no_route = match look(proxy, identified) {
            Ok(found) => return Ok(found),
            Err((_, no_route)) => no_route,
        };
        if !no_route.may_change() {
            return Err(no_route.into());
        }
        // Every branch may be dropped half-way: a change stays seen as one.
        let changed = tokio::select! {
            changed = mesh.changed() => changed,
            changed = pods.changed() => changed,
            () = tokio::time::sleep_until(deadline) => return Err(no_route.into()),
        };
        // Nobody publishes any more: the worker is going away.
        if changed.is_err() {
            return Err(no_route.into());
        }
    }
}

/// The source workload, for the far end.
fn baggage(proxy: &Proxy, pod: &Pod, mesh: &Mesh) -> String {
    let telemetry = pod.workload(mesh).map(|workload| &*workload.telemetry);
    baggage::of(&proxy.settings.cluster, pod.name(), telemetry)
}
