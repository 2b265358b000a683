//! Which endpoints of a service a connection is led to, as kube-proxy chooses them: those that are ready, and where there is none those that
//! come to their end and still serve; of these the ones that are close, as far as the service or its slices ask for it; and of these the
//! one that the client stays with, or one by chance.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::ports::is_reserved;
use mesh_model::{Health, Hints, Near, OrigDst, Readiness, Service, Workload};
use rand::seq::IndexedRandom as _;

use super::{NoRoute, Pod, Target, View, target};

/// How many endpoints are tried for one connection: a second one, when the first fails before a byte has flowed.
pub(super) const TRIES: usize = 2;

/// An endpoint: where it listens, and whose it is.
type Endpoint = (SocketAddr, Arc<Workload>);

/// The ways to a service's endpoints, best first; at least one.
pub(super) fn targets(
    view: View<'_>,
    source: &Pod,
    client: IpAddr,
    service: &Arc<Service>,
    destination: OrigDst,
) -> Result<Vec<Target>, NoRoute> {
    let (vip, port) = (destination.ip(), destination.port());
    let usable = usable(view, service, vip, port)?;
    let mut places = by_place(view, source, service, vip, usable);
    let close = places.next().unwrap_or_default();
    let chosen = match service.session_affinity {
        // The one that it stays with and no other, whether or not it answers: what is kept for the client is there.
        Some(timeout) => {
            let addresses: Vec<SocketAddr> = close.iter().map(|(address, _)| *address).collect();
            let at = source.sessions().choose(client, &service.key, port, &addresses, timeout, view.now);
            at.and_then(|at| close.get(at).cloned()).into_iter().collect()
        }
        None => draw(view, &close, places.next()),
    };
    let mut none = NoRoute::NoEndpoint(service.key.clone());
    let mut targets = Vec::with_capacity(TRIES);
    for (address, workload) in &chosen {
        match target(view, source, Some(workload.clone()), *address, &service.subject_alt_names) {
            Ok(target) => targets.push(target),
            Err(error) if error.may_change() => none = error,
            Err(_) => {}
        }
    }
    if targets.is_empty() { Err(none) } else { Ok(targets) }
}

/// The endpoints that may be used at all.
fn usable(view: View<'_>, service: &Service, vip: IpAddr, port: u16) -> Result<Vec<Endpoint>, NoRoute> {
    let Some(service_port) = service.ports.iter().find(|known| known.service_port == port) else {
        return Err(NoRoute::NoPort { service: service.key.clone(), port });
    };
    let only_here = service.near_at(vip) == Near::OnlyNode;
    // Best first: an endpoint of the other family only when there is none of the asked one, since the client's pod may have no such
    // address; and one that comes to its end only when there is none that is ready.
    let mut found: [Vec<Endpoint>; 4] = Default::default();
    for workload in view.mesh.endpoints(&service.key) {
        let Some(endpoint) = workload.services.get(&service.key) else { continue };
        let is_ending = match endpoint.readiness {
            Readiness::Ready => false,
            Readiness::Ending => true,
            Readiness::Unsaid if workload.health == Health::Healthy || service.publish_not_ready => false,
            Readiness::Unsaid => continue,
        };
        if only_here && workload.node != view.node {
            continue;
        }
        // The workload's own list knows named ports; the service's is for those that do not list it.
        let listed = endpoint.ports.iter().find(|pair| pair.0 == port);
        let target_port = listed.map(|pair| pair.1).or(service_port.target_port);
        if let Some(target_port) = target_port
            && let Some(ip) = address_for(&workload, vip)
            && !is_reserved(target_port)
        {
            let is_other_family = ip.is_ipv4() != vip.is_ipv4();
            let rank = 2 * usize::from(is_other_family) + usize::from(is_ending);
            found[rank].push((SocketAddr::new(ip, target_port), workload));
        }
    }
    Ok(found.into_iter().find(|found| !found.is_empty()).unwrap_or_default())
}

/// Two by chance, the less loaded first: close to least-loaded, without everyone running to the same one.
fn draw(view: View<'_>, close: &[Endpoint], further: Option<Vec<Endpoint>>) -> Vec<Endpoint> {
    let random = &mut rand::rng();
    let mut chosen: Vec<Endpoint> = close.choose_multiple(random, TRIES).cloned().collect();
    if let [first, second, ..] = &mut chosen[..]
        && view.loads.of(second.0) < view.loads.of(first.0)
    {
        std::mem::swap(first, second);
    }
    // What keeps one from answering may keep all that are close: the one that stands by is of the next place, if there is any there.
    if let Some(further) = further.and_then(|further| further.choose(random).cloned()) {
        chosen.truncate(TRIES - 1);
        chosen.push(further);
    }
    chosen
}

/// The endpoints of each place in which there are any, the closest first; where nothing is preferred all are of one place.
fn by_place(
    view: View<'_>,
    source: &Pod,
    service: &Service,
    vip: IpAddr,
    usable: Vec<Endpoint>,
) -> impl Iterator<Item = Vec<Endpoint>> {
    let near = service.near_at(vip);
    let own = source.workload(view.mesh).map(|workload| &workload.telemetry).filter(|own| !own.zone.is_empty());
    let in_zone = |workload: &Workload| {
        let there = &workload.telemetry;
        // Nobody may know the region of an endpoint that is no pod.
        let same_region = |own: &str| own == there.region || own.is_empty() || there.region.is_empty();
        own.is_some_and(|own| own.zone == there.zone && same_region(&own.region))
    };
    let hinted = match near {
        // What is of this node alone is not chosen by place (kube-proxy, `CategorizeEndpoints`).
        Near::OnlyNode => None,
        _ => hinted(&usable, service, view.node, own.map(|own| own.zone.as_str())),
    };
    let (mut on_node, mut zone, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for (at, endpoint) in usable.into_iter().enumerate() {
        let workload = &endpoint.1;
        match (near, &hinted) {
            (_, Some(hinted)) if hinted[at] => on_node.push(endpoint),
            (_, Some(_)) => rest.push(endpoint),
            (Near::PreferNode, None) if workload.node == view.node => on_node.push(endpoint),
            (Near::PreferNode | Near::PreferZone, None) if in_zone(workload) => zone.push(endpoint),
            _ => rest.push(endpoint),
        }
    }
    [on_node, zone, rest].into_iter().filter(|place| !place.is_empty())
}

/// Which endpoints are meant for this client by the hints of their slices; `None` where those say nothing: one of them has none, or none is
/// for this client (kube-proxy, `topologyModeFromHints`).
fn hinted(usable: &[Endpoint], service: &Service, node: &str, zone: Option<&str>) -> Option<Vec<bool>> {
    let meant = |of: fn(&Hints) -> &[String], here: &str| {
        let hints = usable.iter().map(|(_, workload)| workload.services.get(&service.key).map(|one| of(&one.hints)));
        let hints: Option<Vec<bool>> = hints
            .map(|hints| hints.filter(|hints| !hints.is_empty()).map(|hints| hints.iter().any(|hint| hint == here)))
            .collect();
        hints.filter(|meant| meant.contains(&true))
    };
    meant(|hints| &hints.nodes, node).or_else(|| meant(|hints| &hints.zones, zone?))
}

/// The workload's address of the family asked for, else any.
fn address_for(workload: &Workload, vip: IpAddr) -> Option<IpAddr> {
    let same = workload.addresses.iter().find(|ip| ip.is_ipv4() == vip.is_ipv4());
    same.or(workload.addresses.first()).copied()
}
