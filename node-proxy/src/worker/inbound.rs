//! To a pod: in clear (15006) or through a tunnel (15008).
//!
//! Accepted → identified → authorized → connected → copied. Policy is judged before the application sees anything; a refusal travels
//! back through a tunnel with its reason, in clear it is a reset.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_model::policy::{Denied, PolicyKey};
use mesh_model::{ClientAddr, Mesh, OrigDst, Reason, ServiceKey};

use super::accept::Accepted;
use super::authorize::{self, Authorized};
use super::baggage;
use super::connect::{self, Asking, CERTIFICATE, Reached};
use super::connection::{Connection, ConnectionId, Direction, Phase};
use super::copy;
use super::end::End;
use super::identify::{self, Identified};
use super::live::{self, Judged, Ticket};
use super::metrics::{Events, Security, Work};
use super::pods::Pod;
use super::record::{Record, Refusal};
use super::threads::Thread;
use super::tunnel::{self, Handler, Incoming};

/// Serves one plaintext connection to its end.
pub async fn serve(accepted: Accepted, here: Arc<Thread>) {
    let (caller, pod, connection, _place) = accepted.into_parts();
    let mut record = Record::new(&here.proxy.sinks, &connection, &pod);
    record.route("clear", Security::Plain);
    let ticket = live::enter(&pod, &connection);
    let set_up = Box::pin(async {
        let identified = identify::inbound(&pod, connection.client, connection.destination)?;
        let judged =
            |mesh: &Mesh| authorize::inbound(mesh, &here.proxy.pods.table(), &here.sockets, identified.clone());
        let (mesh, authorized) = authorized(&here, judged).await.map_err(|denied| refusal(denied, &identified))?;
        reach(&here, &connection, &ticket, &mesh, &authorized, &mut record).await
    });
    // Dropping the set-up half-way closes what it had opened.
    let reached = tokio::select! {
        biased;
        cause = connection.was_cut() => Err(cause.into()),
        // Its socket is elsewhere.
        reached = caller.while_there(set_up, |_, _| std::future::ready(false)) => reached,
    };
    match reached {
        Err(refusal) => {
            drop(caller);
            record.refused(&refusal);
        }
        Ok(reached) => {
            connection.meter(record.opened());
            let Some(caller) = caller.into_far_end(here.proxy.settings.keepalive) else { return };
            let ended = copy::duplex(reached.join(caller), &connection).await;
            record.ended(&ended);
        }
    }
}

/// Why a plaintext connection is refused; also that it came by an address that no policy names.
fn refusal(denied: Denied, identified: &Identified) -> Refusal {
    let mut refusal = Refusal::from(denied);
    if identified.is_untold() {
        let ip = identified.destination().ip();
        refusal.cause.push_str(&format!(", at {ip}, a further address of the pod, where there is plaintext alone"));
    }
    refusal
}

/// Judged by what is known, and once more when a worker that has just started comes to know more.
async fn authorized(
    here: &Thread,
    judge: impl Fn(&Mesh) -> Result<Authorized, Denied>,
) -> Result<(Arc<Mesh>, Authorized), Denied> {
    let mesh = here.proxy.mesh();
    match judge(&mesh) {
        Ok(authorized) => Ok((mesh, authorized)),
        Err(denied) if here.proxy.knows_more(&denied).await => {
            let mesh = here.proxy.mesh();
            let authorized = judge(&mesh)?;
            Ok((mesh, authorized))
        }
        Err(denied) => Err(denied),
    }
}

/// Reaches the application; from then on the connection is judged again whenever something that decides about it changes.
async fn reach(
    here: &Thread,
    connection: &Connection,
    ticket: &Ticket,
    mesh: &Arc<Mesh>,
    authorized: &Authorized,
    record: &mut Record,
) -> Result<Reached, Refusal> {
    record.authorized(authorized);
    connection.reached(Phase::Judged);
    let asking = Asking { id: connection.id, service_host: None, baggage: String::new() };
    let reached = connect::open(&here.dialer, authorized, asking).await?;
    connection.reached(Phase::Connected);
    if let Some(permit) = authorized.permit() {
        ticket.judged(permit, Judged::Here, mesh, || here.proxy.mesh(), &here.proxy.waiting);
    }
    Ok(reached)
}

/// Serves one tunnel to its end: TLS with the pod's own identity, then each request as a connection of its own.
pub async fn serve_tunnel(accepted: Accepted, here: Arc<Thread>) {
    let (caller, pod, connection, _place) = accepted.into_parts();
    let _ticket = live::enter(&pod, &connection);
    let peer = connection.client.addr();
    let served = Box::pin(async {
        let credentials = match here.dialer.certificates.get(pod.identity(), CERTIFICATE).await {
            Ok(credentials) => credentials,
            Err(error) => return Err(Refusal::of(error.reason(), error.to_string())),
        };
        let gone = || Refusal::of(Reason::Internal, "a caller without a socket");
        let stream = caller.into_stream().ok_or_else(gone)?;
        let at = stream.local_addr().map_err(|error| Refusal::of(Reason::Kernel, error.to_string()))?;
        let handler = Arc::new(Requests { here: here.clone(), pod: pod.clone(), at: at.ip().to_canonical() });
        let served = tunnel::serve(stream, peer, credentials, handler, pod.leaving().clone()).await;
        served.map_err(|error| Refusal::of(error.reason(), error.to_string()))
    });
    // Dropping a tunnel half-way resets its streams, whose handlers close their records.
    let served = tokio::select! {
        biased;
        cause = connection.was_cut() => return tracing::debug!(%peer, pod = %pod.name(), ?cause, "tunnel cut"),
        served = served => served,
    };
    match served {
        Ok(served) => tracing::debug!(
            %peer, pod = %pod.name(), identity = %served.peer, requests = served.requests, broke = ?served.broke,
            "tunnel ended"
        ),
        // A tunnel that was never set up has no connection inside it to tell of the refusal: it has a line of its own.
        Err(refusal) => Record::new(&here.proxy.sinks, &connection, &pod).refused(&refusal),
    }
}

/// Answers the requests of one tunnel.
struct Requests {
    here: Arc<Thread>,
    pod: Arc<Pod>,
    // The pod's address at which the tunnel was accepted.
    at: IpAddr,
}

impl Handler for Requests {
    fn connect(&self, request: Incoming) -> BoxFuture<'static, ()> {
        let served = serve_request(self.here.clone(), self.pod.clone(), self.at, request);
        Box::pin(Work::new(self.pod.meter().clone(), Box::pin(served)))
    }

    fn events(&self) -> Option<Arc<Events>> {
        Some(self.here.proxy.sinks.metrics.events().clone())
    }
}

/// Serves one connection inside a tunnel to its end.
async fn serve_request(here: Arc<Thread>, pod: Arc<Pod>, at: IpAddr, mut request: Incoming) {
    let id = request.traceparent.as_deref().and_then(ConnectionId::of_traceparent);
    let authority = request.authority.as_ref().ok().map(|authority| OrigDst::new(*authority));
    let client = client_of(request.peer.ip(), request.forwarded.as_deref());
    let id = id.unwrap_or_else(ConnectionId::random);
    let connection = Arc::new(Connection::new(id, Direction::Tunnel, client, authority));
    connection.reached(Phase::Served);
    let mut record = Record::new(&here.proxy.sinks, &connection, &pod);
    record.source(request.peer_identity.clone());
    record.route("tunnel", Security::MutualTls);
    let ticket = live::enter(&pod, &connection);
    let opened = {
        let peer = request.peer_identity.clone();
        let (authority, forwarded) = (request.authority.clone(), request.forwarded.clone());
        let set_up = Box::pin(async {
            let authority = OrigDst::new(authority?);
            let room = room(&here, &pod)?;
            let identified = identify::tunnelled(&pod, peer, client, authority, at)?;
            let (mesh, authorized) = authorized(&here, |mesh| authorize::tunnelled(mesh, identified.clone()))
                .await
                .map_err(|denied| (denied.policy().cloned(), Refusal::from(denied)))?;
            if let Some(service) = called_service(&mesh, &pod, forwarded.as_deref()) {
                record.service(&service);
            }
            let reached = reach(&here, &connection, &ticket, &mesh, &authorized, &mut record).await?;
            Ok::<_, Refused>((reached, room))
        });
        // Dropping the set-up half-way closes what it had opened.
        tokio::select! {
            biased;
            cause = connection.was_cut() => Err(Refused { policy: cause.policy.clone(), refusal: cause.into() }),
            () = request.cancelled() => Err(Refusal::of(Reason::Reset, "the caller took the request back").into()),
            opened = set_up => opened,
        }
    };
    let (reached, _room) = match opened {
        Ok(opened) => opened,
        Err(Refused { refusal, policy }) => {
            request.refuse(refusal.reason, policy.as_ref());
            return record.refused(&refusal);
        }
    };
    let baggage = baggage(&here, &pod);
    // Only now: 200 says that the application has the connection.
    let stream = match request.accept(Some(&baggage)) {
        Ok(stream) => stream,
        Err(closed) => return record.refused(&Refusal::of(closed.reason(), "the tunnel ended before the answer")),
    };
    connection.meter(record.opened());
    let ended = copy::duplex(reached.join(End::Tunnel(Box::new(stream))), &connection).await;
    record.ended(&ended);
}

/// A refusal with its policy as the wire wants it.
struct Refused {
    refusal: Refusal,
    policy: Option<PolicyKey>,
}

impl<E: Into<Refusal>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self { refusal: error.into(), policy: None }
    }
}

impl From<(Option<PolicyKey>, Refusal)> for Refused {
    fn from((policy, refusal): (Option<PolicyKey>, Refusal)) -> Self {
        Self { refusal, policy }
    }
}

/// A place in both budgets: a stream costs a socket like any connection.
fn room(
    here: &Thread,
    pod: &Pod,
) -> Result<(tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedSemaphorePermit), Refusal> {
    let of_pod = pod.room().ok_or_else(|| {
        Refusal::of(Reason::Overloaded, format!("pod {} has used up its budget of connections", pod.name()))
    })?;
    let of_worker = here.proxy.budget.clone().try_acquire_owned();
    let of_worker =
        of_worker.map_err(|_| Refusal::of(Reason::Overloaded, "this node's proxy has no descriptors left"))?;
    Ok((of_worker, of_pod))
}

/// The caller's address: what the tunnel's socket says, which nobody can forge further than the network lets them. Its port is the
/// one in `forwarded` when that names the same address (it only chooses the port that the application sees), else unknown.
fn client_of(peer: IpAddr, forwarded: Option<&str>) -> ClientAddr {
    let peer = peer.to_canonical();
    let named = forwarded.and_then(forwarded_for).filter(|named| named.ip().to_canonical() == peer);
    ClientAddr::new(SocketAddr::new(peer, named.map_or(0, |named| named.port())))
}

/// The service that the caller says it called: believed when the pod is behind it, and for log and metrics only.
fn called_service(mesh: &Mesh, pod: &Pod, forwarded: Option<&str>) -> Option<ServiceKey> {
    let host = forwarded.and_then(|header| parameter(header, "host"))?;
    pod.workload(mesh)?.services.keys().find(|key| key.hostname == host).cloned()
}

/// RFC 7239, 4 and 6: `for="192.0.2.1:4711"` or `for="[2001:db8::1]:4711"`, of the first element.
fn forwarded_for(header: &str) -> Option<SocketAddr> {
    parameter(header, "for")?.parse().ok()
}

/// One parameter of the first element of `forwarded`, without its quotes.
fn parameter<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    let element = header.split(',').next()?;
    let value = element.split(';').map(str::trim).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })?;
    Some(value.trim_matches('"'))
}

/// The destination workload, for the far end.
fn baggage(here: &Thread, pod: &Pod) -> String {
    let mesh = here.proxy.mesh();
    let telemetry = pod.workload(&mesh).map(|workload| &*workload.telemetry);
    baggage::of(&here.proxy.settings.cluster, pod.name(), telemetry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_port_is_believed_only_for_the_callers_own_address() {
        let peer: IpAddr = "198.18.1.5".parse().expect("address");
        let client = |header| client_of(peer, header).addr().to_string();
        assert_eq!(client(Some("for=\"198.18.1.5:4711\";host=cart.shop")), "198.18.1.5:4711");
        assert_eq!(client(Some("For=198.18.1.5:4711")), "198.18.1.5:4711");
        assert_eq!(client(Some("for=\"10.0.0.1:4711\"")), "198.18.1.5:0");
        assert_eq!(client(Some("for=unknown")), "198.18.1.5:0");
        assert_eq!(client(Some("for=\"[::ffff:198.18.1.5]:80\"")), "198.18.1.5:80");
        assert_eq!(client(None), "198.18.1.5:0");
    }
}
