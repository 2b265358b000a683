//! Who speaks. On the way out that is the listener's pod; on the way in, the peer's certificate, or nobody.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::ports::is_reserved;
use mesh_model::{ClientAddr, Identity, OrigDst, Reason};

use super::pods::Pod;

/// A connection whose ends make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// The kernel did not say where it wanted to go.
    #[error("the kernel knows no original destination of this connection")]
    NoOriginalDestination,
    /// It came to a pod that does not have this address.
    #[error("{destination} is not an address of pod {pod}")]
    WrongDestination {
        /// Where it wanted to go.
        destination: OrigDst,
        /// Whose listener it reached.
        pod: mesh_model::PodName,
    },
    /// The tunnel was made to another of the pod's addresses.
    #[error("{destination} was asked for in a tunnel to {at}")]
    OtherAddress {
        /// Where it wanted to go.
        destination: OrigDst,
        /// At which address the tunnel was accepted.
        at: IpAddr,
    },
    /// It wants to go to one of our own ports.
    #[error("port {0} is the proxy's own")]
    ReservedPort(u16),
    /// It comes from a pod that has no address.
    #[error("pod {0} has no address to come from")]
    NoSourceAddress(mesh_model::PodName),
}

impl Unidentified {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self {
            Unidentified::NoOriginalDestination => Reason::NoOriginalDestination,
            Unidentified::WrongDestination { .. } | Unidentified::OtherAddress { .. } => Reason::WrongDestination,
            Unidentified::ReservedPort(_) => Reason::ReservedPort,
            Unidentified::NoSourceAddress(_) => Reason::ConnectFailed,
        }
    }
}

/// A connection of which both ends are known.
#[derive(Clone, Debug)]
pub struct Identified {
    pod: Arc<Pod>,
    source: Option<Identity>,
    client: ClientAddr,
    destination: OrigDst,
    // Whether the pod is the caller.
    calls: bool,
}

impl Identified {
    /// The calling pod, when it is the listener's: nothing of the called one may be taken for the caller's.
    pub fn caller(&self) -> Option<&Arc<Pod>> {
        self.calls.then_some(&self.pod)
    }

    /// The pod whose listener it reached: the caller on the way out, the called one on the way in.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The proven identity of the caller; `None` for plaintext.
    pub fn source(&self) -> Option<&Identity> {
        self.source.as_ref()
    }

    /// Where it comes from.
    pub fn client(&self) -> ClientAddr {
        self.client
    }

    /// Where it wants to go.
    pub fn destination(&self) -> OrigDst {
        self.destination
    }

    /// Whether that is an address of the pod's network that nobody has told of: a further interface, or one that the pod gave itself.
    pub fn is_untold(&self) -> bool {
        !self.pod.has_address(self.destination.ip())
    }
}

/// From the pod's own application: who speaks is known from the listener.
pub fn outbound(pod: &Arc<Pod>, client: ClientAddr, destination: Option<OrigDst>) -> Result<Identified, Unidentified> {
    let destination = destination.ok_or(Unidentified::NoOriginalDestination)?;
    // An application may dial our listener itself: nothing was captured, and the way out would lead back to it.
    if is_reserved(destination.port()) && (pod.has_address(destination.ip()) || destination.ip().is_loopback()) {
        return Err(Unidentified::ReservedPort(destination.port()));
    }
    let client = from_its_own(pod, client)?;
    Ok(Identified { pod: pod.clone(), source: Some(pod.identity().clone()), client, destination, calls: true })
}

/// An application may bind what its network has, `127.0.0.1` by `SO_BINDTODEVICE` or whatever it put on `lo`, and policy and the called
/// application would be told that: such a connection comes from the pod's own address, and from no port that anyone chose.
fn from_its_own(pod: &Pod, client: ClientAddr) -> Result<ClientAddr, Unidentified> {
    let claimed = client.addr();
    if pod.has_address(claimed.ip()) {
        return Ok(client);
    }
    let own = &pod.facts().addresses;
    let of_family = own.iter().find(|ip| ip.is_ipv4() == claimed.ip().to_canonical().is_ipv4());
    let ip = of_family.or(own.first()).ok_or_else(|| Unidentified::NoSourceAddress(pod.name().clone()))?;
    Ok(ClientAddr::new(SocketAddr::new(*ip, 0)))
}

/// To the pod without a tunnel: nobody has proven anything, also when the source address is a mesh pod's. The kernel captures what comes
/// to addresses of the pod's network, told or not; it is judged at each as at the pod's own, so a further network of the pod is no way
/// past a policy.
pub fn inbound(pod: &Arc<Pod>, client: ClientAddr, destination: Option<OrigDst>) -> Result<Identified, Unidentified> {
    let destination = destination.ok_or(Unidentified::NoOriginalDestination)?;
    let ip = destination.ip();
    if !pod.has_address(ip) && (ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
        return Err(Unidentified::WrongDestination { destination, pod: pod.name().clone() });
    }
    let destination = no_port_of_ours(destination)?;
    Ok(Identified { pod: pod.clone(), source: None, client, destination, calls: false })
}

/// To the pod through a tunnel that was accepted at its address `at`: the peer's certificate says who speaks, the request's authority
/// where it wants to go. That must be the very address (as ambient's other proxies ask): of the other family, there is no address of
/// the caller that the application could be shown.
pub fn tunnelled(
    pod: &Arc<Pod>,
    peer: Identity,
    client: ClientAddr,
    authority: OrigDst,
    at: IpAddr,
) -> Result<Identified, Unidentified> {
    let destination = own(pod, authority)?;
    if destination.ip().to_canonical() != at.to_canonical() {
        return Err(Unidentified::OtherAddress { destination, at });
    }
    Ok(Identified { pod: pod.clone(), source: Some(peer), client, destination, calls: false })
}

fn own(pod: &Pod, destination: OrigDst) -> Result<OrigDst, Unidentified> {
    if !pod.has_address(destination.ip()) {
        return Err(Unidentified::WrongDestination { destination, pod: pod.name().clone() });
    }
    no_port_of_ours(destination)
}

fn no_port_of_ours(destination: OrigDst) -> Result<OrigDst, Unidentified> {
    match is_reserved(destination.port()) {
        true => Err(Unidentified::ReservedPort(destination.port())),
        false => Ok(destination),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pods::testing::*;
    use super::*;

    fn client() -> ClientAddr {
        ClientAddr::new(([198, 18, 2, 9], 40000).into())
    }

    fn to(text: &str) -> Option<OrigDst> {
        Some(OrigDst::new(text.parse().expect("address")))
    }

    #[test]
    fn inbound_reaches_what_the_pods_network_has_and_a_tunnel_only_the_pods_own_addresses_and_both_none_of_our_ports() {
        let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
        let reason = |destination| inbound(&pod, client(), destination).err().map(|error| error.reason());
        let untold = |text: &str| inbound(&pod, client(), to(text)).map(|identified| identified.is_untold()).ok();
        let tunnel = |text: &str| {
            let (authority, at) = (to(text)?, pod.facts().addresses[0]);
            tunnelled(&pod, pod.identity().clone(), client(), authority, at).err().map(|error| error.reason())
        };
        for own in ["198.18.1.5:80", "[::ffff:198.18.1.5]:80"] {
            assert_eq!((untold(own), tunnel(own)), (Some(false), None), "{own}");
        }
        for second in ["10.55.0.2:80", "[fd55::2]:80"] {
            assert_eq!((untold(second), tunnel(second)), (Some(true), Some(Reason::WrongDestination)), "{second}");
        }
        for nonsense in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "224.0.0.1:80", "[ff02::1]:80"] {
            let wrong = Some(Reason::WrongDestination);
            assert_eq!((reason(to(nonsense)), tunnel(nonsense)), (wrong, wrong), "{nonsense}");
        }
        for port in [15001, 15006, 15008, 15053, 15104] {
            for ip in ["198.18.1.5", "10.55.0.2"] {
                assert_eq!(reason(to(&format!("{ip}:{port}"))), Some(Reason::ReservedPort));
            }
        }
        assert_eq!(reason(None), Some(Reason::NoOriginalDestination));
    }

    #[test]
    fn a_tunnel_leads_to_the_address_that_it_was_made_to_and_to_no_other_of_the_pod() {
        let mut facts = facts("shop", "web", "198.18.1.5");
        facts.addresses.push("fd77::5".parse().expect("address"));
        let pod = pod(1, &facts);
        let reason = |authority: &str, at: &str| {
            let authority = OrigDst::new(authority.parse().expect("address"));
            let peer = pod.identity().clone();
            tunnelled(&pod, peer, client(), authority, at.parse().expect("address")).err().map(|error| error.reason())
        };
        for own in
            [("198.18.1.5:80", "198.18.1.5"), ("198.18.1.5:80", "::ffff:198.18.1.5"), ("[fd77::5]:80", "fd77::5")]
        {
            assert_eq!(reason(own.0, own.1), None, "{own:?}");
        }
        for other in [("[fd77::5]:80", "198.18.1.5"), ("198.18.1.5:80", "fd77::5"), ("198.18.1.6:80", "198.18.1.5")] {
            assert_eq!(reason(other.0, other.1), Some(Reason::WrongDestination), "{other:?}");
        }
    }

    #[test]
    fn outbound_comes_from_the_pods_own_address_whatever_it_bound() {
        let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
        let from = |text: &str| {
            let claimed = ClientAddr::new(text.parse().expect("address"));
            outbound(&pod, claimed, to("198.18.1.9:80")).expect("identified").client().addr().to_string()
        };
        assert_eq!(from("198.18.1.5:40000"), "198.18.1.5:40000");
        assert_eq!(from("[::ffff:198.18.1.5]:40000"), "198.18.1.5:40000");
        for claimed in ["127.0.0.1:40000", "198.18.1.9:40000", "[::1]:40000", "[::ffff:127.0.0.1]:40000"] {
            assert_eq!(from(claimed), "198.18.1.5:0", "{claimed}");
        }
    }

    #[test]
    fn an_application_that_dials_our_own_listener_is_refused_and_the_same_port_elsewhere_is_not() {
        let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
        let reason = |destination| outbound(&pod, client(), to(destination)).err().map(|error| error.reason());
        for own in ["198.18.1.5:15001", "127.0.0.1:15001", "[::1]:15006", "[::ffff:127.0.0.1]:15008"] {
            assert_eq!(reason(own), Some(Reason::ReservedPort), "{own}");
        }
        for other in ["203.0.113.1:15001", "198.18.1.5:80"] {
            assert_eq!(reason(other), None, "{other}");
        }
    }

    #[test]
    fn plaintext_proves_nothing_and_a_listener_proves_its_pod() {
        let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
        assert_eq!(inbound(&pod, client(), to("198.18.1.5:80")).expect("identified").source(), None);
        let out = outbound(&pod, client(), to("203.0.113.1:443")).expect("identified");
        assert_eq!(out.source().map(ToString::to_string).as_deref(), Some("spiffe://cluster.local/ns/shop/sa/sa-web"));
    }
}
