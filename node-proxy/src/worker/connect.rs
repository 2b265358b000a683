//! The destination's end of a connection. The only maker of [`Connected`], the only thing whose bytes are moved.
//!
//! Nothing is connected without an [`Authorized`], which also says to what: a permit for one destination opens no other. Sockets
//! come from the pods' own network namespaces, so the far side sees the pod's address; towards an application they carry the
//! caller's address and, where it is free, its port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::worker::{Family, Purpose};
use mesh_model::{Identity, Reason, ports};
use mesh_net::socket;
use mesh_net::socket_options::{self, Keepalive};
use tokio::net::{TcpSocket, TcpStream};

use super::authorize::{Authorized, To};
use super::certs::{CertError, Certificates};
use super::connection::ConnectionId;
use super::end::End;
use super::identify::Identified;
use super::mint::{Mint, NoSocket};
use super::tunnel::{ConnectRequest, DialError, OpenError, Pool, TunnelKey};

/// How long a connection waits for a certificate of its identity.
pub const CERTIFICATE: Duration = Duration::from_secs(10);

/// The destination could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No socket to do it with.
    #[error(transparent)]
    NoSocket(#[from] NoSocket),
    /// The kernel or the far side said no.
    #[error("connect to {to}: {source}")]
    Failed {
        /// Where to.
        to: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("connect to {to}: no answer within {} s", after.as_secs())]
    Timeout {
        /// Where to.
        to: SocketAddr,
        /// How long was waited.
        after: Duration,
    },
    /// The caller has no address of the family.
    #[error("the caller {client} has no address to reach {to} from")]
    NoSourceAddress {
        /// Who calls.
        client: SocketAddr,
        /// Where to.
        to: SocketAddr,
    },
    /// No certificate for the caller's identity.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The tunnel or the far proxy said no.
    #[error(transparent)]
    Tunnel(#[from] OpenError),
}

impl ConnectError {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self {
            ConnectError::NoSocket(error) => error.reason(),
            ConnectError::Failed { source, .. } if source.kind() == io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            ConnectError::Failed { .. } | ConnectError::NoSourceAddress { .. } => Reason::ConnectFailed,
            ConnectError::Timeout { .. } => Reason::ConnectTimeout,
            ConnectError::Certificate(error) => error.reason(),
            ConnectError::Tunnel(error) => error.reason(),
        }
    }

    /// The policy that said no at the far end.
    pub fn policy(&self) -> Option<String> {
        match self {
            ConnectError::Tunnel(error) => error.policy(),
            _ => None,
        }
    }

    /// Whether another endpoint may answer otherwise. A missing socket or certificate is ours and stays missing; a policy that
    /// refused the caller is an answer.
    pub fn try_another(&self) -> bool {
        match self {
            ConnectError::NoSocket(_) | ConnectError::Certificate(_) => false,
            ConnectError::Failed { .. } | ConnectError::Timeout { .. } | ConnectError::NoSourceAddress { .. } => true,
            ConnectError::Tunnel(error) => {
                !matches!(error.reason(), Reason::PolicyDenied | Reason::PolicyUnknown | Reason::NoSocket)
            }
        }
    }
}

impl ConnectError {
    fn io(to: SocketAddr, source: io::Error) -> Self {
        ConnectError::Failed { to, source }
    }
}

/// Both ends of a connection that may flow.
#[derive(Debug)]
pub struct Connected {
    client: End,
    destination: End,
}

impl Connected {
    /// The ends: (client, destination).
    pub fn into_ends(self) -> (End, End) {
        (self.client, self.destination)
    }
}

/// The destination's end, reached.
#[derive(Debug)]
pub struct Reached(End);

impl Reached {
    /// Joins it with the client's end.
    pub fn join(self, client: End) -> Connected {
        Connected { client, destination: self.0 }
    }
}

/// What a thread connects with.
#[derive(Clone)]
pub struct Dialer {
    /// Sockets in pods.
    pub mint: Mint,
    /// This thread's tunnels.
    pub pool: Pool,
    /// Certificates of this node's identities.
    pub certificates: Certificates,
    /// When a silent peer is given up.
    pub keepalive: Keepalive,
    /// When a destination that does not answer a connect is given up.
    pub connect_timeout: Duration,
}

/// What is told to the far proxy about a connection.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Its id.
    pub id: ConnectionId,
    /// Host name of the service that was called.
    pub service_host: Option<String>,
    /// The source workload.
    pub baggage: String,
}

/// Reaches what the connection is authorized to reach.
pub async fn open(dialer: &Dialer, authorized: &Authorized, asking: Asking) -> Result<Reached, ConnectError> {
    let identified = authorized.identified();
    Ok(Reached(match authorized.to() {
        To::App { pod, address } => {
            let source = source_for(identified, *address)?;
            // A pod that calls itself: sockets that are bound to `lo` do not hear answers from its own address.
            End::tcp(match pod.has_address(source.ip()) {
                true => towards_itself(dialer, pod.slot(), source, *address).await?,
                false => towards_app(dialer, pod.slot(), source, *address).await?,
            })
        }
        To::Clear(address) => {
            let stream = towards_peer(dialer, identified.pod().slot(), *address).await?;
            End::far(stream, dialer.keepalive)
        }
        To::Tunnel { address, accepted } => {
            End::Tunnel(Box::new(tunnel(dialer, identified, *address, accepted.clone(), asking).await?))
        }
    }))
}

/// The address that the application will see: the caller's own. When a service's address of one family stood for an endpoint
/// of the other, the calling pod's address of that family; on the way in no other is known.
fn source_for(identified: &Identified, to: SocketAddr) -> Result<SocketAddr, ConnectError> {
    let client = identified.client().addr();
    if client.is_ipv4() == to.is_ipv4() {
        return Ok(client);
    }
    let own = identified.caller().map(|pod| pod.facts());
    let other = own.and_then(|facts| facts.addresses.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4()));
    other.map(|ip| SocketAddr::new(ip, 0)).ok_or(ConnectError::NoSourceAddress { client, to })
}

/// From here on a port is one that kernels choose for whoever asks for none (the start of `ip_local_port_range`). Below it stand the ports
/// that applications listen on: one that bears a caller's port could not be bound by an application that comes later, and those below
/// 1024 cannot be bound here at all.
const FIRST_CHOSEN: u16 = 32_768;

/// Connects to the application of a pod from a foreign source address.
async fn towards_app(
    dialer: &Dialer,
    slot: u32,
    source: SocketAddr,
    to: SocketAddr,
) -> Result<TcpStream, ConnectError> {
    // The socket is bound to `lo`, and a link-local address of another interface would not be taken; the caller's is shown as one of `lo`.
    let (source, on_lo) = (SocketAddr::new(source.ip(), source.port()), SocketAddr::new(to.ip(), to.port()));
    let any_port = SocketAddr::new(source.ip(), 0);
    let Dialer { mint, connect_timeout, .. } = dialer;
    let fd = mint.take(slot, family(to), Purpose::TowardsApp).await?;
    let wanted = if source.port() < FIRST_CHOSEN { any_port } else { source };
    let reached = match socket::bind_caller(&fd, wanted) {
        Ok(()) => match connect(fd, on_lo, *connect_timeout).await {
            // Another socket has this very 4-tuple, or was bound to the port.
            Err(ConnectError::Failed { source, .. }) if is_taken(&source) && wanted != any_port => {
                let fd = mint.take(slot, family(to), Purpose::TowardsApp).await?;
                socket::bind_source(&fd, any_port).map_err(|error| ConnectError::io(to, error))?;
                connect(fd, on_lo, *connect_timeout).await
            }
            done => done,
        },
        Err(error) if is_taken(&error) && wanted != any_port => {
            socket::bind_source(&fd, any_port).map_err(|error| ConnectError::io(to, error))?;
            connect(fd, on_lo, *connect_timeout).await
        }
        Err(error) => Err(ConnectError::io(to, error)),
    };
    match reached {
        // Nobody listens where packets come by `lo`; an application may listen on an interface. For a socket that is bound to nothing
        // the kernel takes the pod's address for one of that interface.
        Err(ConnectError::Failed { source: error, .. }) if error.kind() == io::ErrorKind::ConnectionRefused => {
            towards_itself(dialer, slot, source, to).await
        }
        reached => reached,
    }
}

/// The same by a socket that is bound to no interface, from any port.
async fn towards_itself(
    dialer: &Dialer,
    slot: u32,
    source: SocketAddr,
    to: SocketAddr,
) -> Result<TcpStream, ConnectError> {
    let fd = dialer.mint.take(slot, family(to), Purpose::TowardsPeer).await?;
    socket::bind_source(&fd, SocketAddr::new(source.ip(), 0)).map_err(|error| ConnectError::io(to, error))?;
    connect(fd, to, dialer.connect_timeout).await
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Connects from a pod to the world.
async fn towards_peer(dialer: &Dialer, slot: u32, to: SocketAddr) -> Result<TcpStream, ConnectError> {
    let fd = dialer.mint.take(slot, family(to), Purpose::TowardsPeer).await?;
    // A far end may vanish without a word; one in a pod of this node cannot. Fails only for what is not a TCP socket.
    let _ = socket_options::keepalive(&fd, dialer.keepalive);
    connect(fd, to, dialer.connect_timeout).await
}

async fn tunnel(
    dialer: &Dialer,
    identified: &Identified,
    address: SocketAddr,
    accepted: Vec<Identity>,
    asking: Asking,
) -> Result<super::tunnel::Stream, ConnectError> {
    let source = identified.pod().identity().clone();
    let credentials = dialer.certificates.get(&source, CERTIFICATE).await?;
    let slot = identified.pod().slot();
    let peer = SocketAddr::new(address.ip(), ports::TUNNEL);
    let request = ConnectRequest {
        authority: address,
        traceparent: asking.id.traceparent(),
        forwarded_for: identified.client().addr(),
        service_host: asking.service_host,
        baggage: asking.baggage,
    };
    let key = TunnelKey { slot, source, destination: peer, accepted };
    let dial = async move {
        towards_peer(dialer, slot, peer).await.map_err(|error| DialError::new(error.reason(), error.to_string()))
    };
    Ok(dialer.pool.open(key, request, Arc::clone(&credentials), dial).await?)
}

fn family(to: SocketAddr) -> Family {
    if to.is_ipv4() { Family::V4 } else { Family::V6 }
}

async fn connect(fd: OwnedFd, to: SocketAddr, timeout: Duration) -> Result<TcpStream, ConnectError> {
    // Fails only for what is not a socket.
    let _ = socket_options::urgent_inline(&fd);
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    match tokio::time::timeout(timeout, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(ConnectError::io(to, error)),
        Err(_) => Err(ConnectError::Timeout { to, after: timeout }),
    }
}

#[cfg(test)]
impl Connected {
    /// For tests of the copy loop alone.
    pub fn of(client: End, destination: End) -> Self {
        Self { client, destination }
    }
}

#[cfg(test)]
mod tests;
