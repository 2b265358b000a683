//! Route choice as tables over a small mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_model::{
    Endpoint, External, Health, Hints, Near, NetworkPolicy, PodUid, Readiness, ServicePort, Telemetry, TrustDomain,
    WorkloadUid,
};

use super::endpoints::TRIES;
use super::*;
use crate::worker::pods::Pods;
use crate::worker::pods::testing;

/// A workload `ns/name` on `node` with one address.
fn workload(name: &str, node: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}")),
        pod: PodName { namespace: "shop".into(), name: name.into() },
        pod_uid: PodUid::parse(&format!("uid-{name}")).ok(),
        service_account: format!("sa-{name}"),
        trust_domain: TrustDomain::parse("cluster.local").expect("trust domain"),
        addresses: vec![address.parse().expect("address")],
        node: node.into(),
        tunnel: Tunnel::Hbone,
        policies: Vec::new(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local") }
}

fn service(name: &str, vips: &[&str]) -> Service {
    Service {
        key: key(name),
        name: name.into(),
        vips: vips.iter().map(|ip| ip.parse().expect("address")).collect(),
        ports: vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }],
        subject_alt_names: Vec::new(),
        publish_not_ready: false,
        near: Near::Any,
        external: None,
        session_affinity: None,
        ip_families: Default::default(),
        needs_waypoint: false,
    }
}

fn behind(mut workload: Workload, service: &str) -> Workload {
    workload.services.insert(key(service), Endpoint::at([(80, 8080)]));
    workload
}

#[derive(Clone)]
struct World {
    mesh: Mesh,
    pods: Arc<Pods>,
    source: Arc<Pod>,
    loads: Arc<Loads>,
    client: IpAddr,
    now: Instant,
}

impl World {
    /// node-1 with the calling pod `web`; both ends unselected by NetworkPolicy.
    fn new() -> Self {
        let pods = Arc::new(Pods::default());
        pods.complete();
        let source = testing::pod(1, &testing::facts("shop", "web", "198.18.1.5"));
        pods.add(source.clone());
        let mut mesh = Mesh::default();
        mesh.apply_workload(workload("web", "node-1", "198.18.1.5"));
        let client = IpAddr::from([198, 18, 1, 5]);
        Self { mesh, pods, source, loads: Arc::default(), client, now: Instant::now() }
    }

    fn with(mut self, workload: Workload) -> Self {
        self.mesh.apply_workload(workload);
        self
    }

    fn service(mut self, service: Service) -> Self {
        self.mesh.apply_service(service);
        self
    }

    fn local(self, slot: u32, name: &str, address: &str) -> Self {
        self.pods.add(testing::pod(slot, &testing::facts("shop", name, address)));
        self
    }

    fn resolve(&self, destination: &str) -> Result<Routed, NoRoute> {
        let ranges = ClusterRanges::new(["198.18.0.0/15", "fd77::/16"].map(|net| net.parse().expect("network")));
        let table = self.pods.table();
        let view = View {
            mesh: &self.mesh,
            table: &table,
            node: "node-1",
            ranges: &ranges,
            loads: &self.loads,
            now: self.now,
        };
        resolve(view, &self.source, self.client, OrigDst::new(destination.parse().expect("address")))
    }

    /// The route in one line.
    fn way(&self, destination: &str) -> String {
        match self.resolve(destination) {
            Err(no_route) => no_route.reason().to_string(),
            Ok(Routed::Outside(to)) => format!("outside {to}"),
            Ok(Routed::Inside { targets, .. }) => {
                let target = &targets[0];
                let way = match target.way() {
                    Way::Short(_) => "short",
                    Way::Tunnel { .. } => "tunnel",
                    Way::Clear => "clear",
                };
                format!("{way} {}", target.address())
            }
        }
    }
}

#[test]
fn what_no_record_names_is_unknown_inside_and_passes_outside() {
    let world = World::new();
    assert_eq!(world.way("198.19.7.7:80"), "UnknownDestination");
    assert_eq!(world.way("[fd77::7]:80"), "UnknownDestination");
    assert_eq!(world.way("203.0.113.1:443"), "outside 203.0.113.1:443");
    assert_eq!(world.way("[::ffff:203.0.113.1]:443"), "outside 203.0.113.1:443");
}

#[test]
fn our_own_ports_are_refused_in_the_pod_itself_and_in_mesh_pods_and_not_elsewhere() {
    let clear = Workload { tunnel: Tunnel::Clear, ..workload("plain", "node-2", "198.18.2.8") };
    let world = World::new().with(workload("cart", "node-2", "198.18.2.7")).with(clear);
    for port in [15001, 15006, 15008, 15053, 15119] {
        for own in ["127.0.0.1", "198.18.1.5", "198.18.2.7", "[::1]"] {
            assert_eq!(world.way(&format!("{own}:{port}")), "ReservedPort", "{own}:{port}");
        }
        assert_eq!(world.way(&format!("203.0.113.1:{port}")), format!("outside 203.0.113.1:{port}"));
        assert_eq!(world.way(&format!("198.18.2.8:{port}")), format!("clear 198.18.2.8:{port}"));
    }
}

#[test]
fn a_record_that_says_hbone_is_never_dialled_in_clear() {
    let world = World::new().with(workload("cart", "node-2", "198.18.2.7"));
    assert_eq!(world.way("198.18.2.7:8080"), "tunnel 198.18.2.7:8080");
    let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.2.7:8080") else { panic!("no route") };
    let Way::Tunnel { accepted } = targets[0].way() else { panic!("no tunnel") };
    assert_eq!(accepted, &[Identity::parse("spiffe://cluster.local/ns/shop/sa/sa-cart").expect("identity")]);
    // A mesh pod of this node that has no listeners here (yet, or any more): its proxy is asked, and will not answer.
    let world = World::new().with(workload("leaving", "node-1", "198.18.1.9"));
    assert_eq!(world.way("198.18.1.9:8080"), "tunnel 198.18.1.9:8080");
}

#[test]
fn the_short_way_needs_both_pods_known_to_be_unselected() {
    let selected = |name: &str, address: &str| Workload {
        network_policy: NetworkPolicy::Selected,
        ..workload(name, "node-1", address)
    };
    let local = |world: World| world.local(2, "cart", "198.18.1.6");
    let to = "198.18.1.6:8080";
    let world = local(World::new().with(workload("cart", "node-1", "198.18.1.6")));
    assert_eq!(world.way(to), "short 198.18.1.6:8080");
    let world = local(World::new().with(selected("cart", "198.18.1.6")));
    assert_eq!(world.way(to), "tunnel 198.18.1.6:8080", "destination selected");
    let world = local(World::new().with(workload("cart", "node-1", "198.18.1.6")).with(selected("web", "198.18.1.5")));
    assert_eq!(world.way(to), "tunnel 198.18.1.6:8080", "source selected");
    let world = local(World::new());
    assert_eq!(world.way(to), "tunnel 198.18.1.6:8080", "destination unknown");
}

#[test]
fn a_pod_of_this_node_is_itself_whatever_the_mesh_says_about_its_address() {
    // The record at the address is of another pod that had it before.
    let stale = Workload { tunnel: Tunnel::Clear, ..workload("old", "node-1", "198.18.1.6") };
    let world = World::new().with(stale).local(2, "cart", "198.18.1.6");
    let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.1.6:8080") else { panic!("no route") };
    assert!(matches!(targets[0].way(), Way::Tunnel { .. }));
    assert!(targets[0].workload().is_none());
    assert_eq!(targets[0].identity().map(Identity::service_account), Some("sa-cart"));
}

#[test]
fn a_record_of_an_earlier_pod_of_the_same_name_is_not_this_pods() {
    let mut earlier = workload("cart", "node-1", "198.18.1.6");
    earlier.pod_uid = PodUid::parse("uid-of-another").ok();
    let world = World::new().with(earlier).local(2, "cart", "198.18.1.6");
    assert_eq!(world.way("198.18.1.6:8080"), "tunnel 198.18.1.6:8080");
}

#[test]
fn a_service_leads_to_its_healthy_endpoints_on_their_target_port() {
    let down = Workload { health: Health::Unhealthy, ..behind(workload("c2", "node-2", "198.18.2.8"), "cart") };
    let world = World::new()
        .service(service("cart", &["198.18.128.9"]))
        .with(behind(workload("c1", "node-2", "198.18.2.7"), "cart"))
        .with(down.clone());
    for _ in 0..20 {
        assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.2.7:8080");
    }
    assert_eq!(world.way("198.18.128.9:81"), "NoEndpoint", "no such port");
    let only_down = World::new().service(service("cart", &["198.18.128.9"])).with(down.clone());
    assert_eq!(only_down.way("198.18.128.9:80"), "NoEndpoint");
    let unready = Service { publish_not_ready: true, ..service("cart", &["198.18.128.9"]) };
    assert_eq!(World::new().service(unready).with(down).way("198.18.128.9:80"), "tunnel 198.18.2.8:8080");
}

#[test]
fn a_named_target_port_is_each_workloads_own() {
    let named = Service {
        ports: vec![ServicePort { service_port: 80, target_port: None, app_protocol: Default::default() }],
        ..service("cart", &["198.18.128.9"])
    };
    let mut one = workload("c1", "node-2", "198.18.2.7");
    one.services.insert(key("cart"), Endpoint::at([(80, 9001)]));
    assert_eq!(World::new().service(named).with(one).way("198.18.128.9:80"), "tunnel 198.18.2.7:9001");
}

#[test]
fn a_local_service_uses_this_nodes_endpoints_alone() {
    let local = || Service { near: Near::OnlyNode, ..service("cart", &["198.18.128.9"]) };
    let far = || behind(workload("c1", "node-2", "198.18.2.7"), "cart");
    let near = behind(workload("c2", "node-1", "198.18.1.6"), "cart");
    assert_eq!(World::new().service(local()).with(far()).way("198.18.128.9:80"), "NoEndpoint");
    let world = World::new().service(local()).with(far()).with(near);
    for _ in 0..20 {
        assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.1.6:8080");
    }
}

#[test]
fn the_endpoints_of_a_service_share_it_and_of_two_that_are_drawn_the_less_loaded_comes_first() {
    const ENDPOINTS: usize = 10;
    const DRAWS: usize = 5_000;
    let address = |n: usize| format!("198.18.2.{}", 10 + n);
    for near in [Near::Any, Near::PreferZone] {
        let cart = Service { near, ..service("cart", &["198.18.128.9"]) };
        let world = World::new().service(cart).with(placed(workload("web", "node-1", "198.18.1.5"), "a"));
        let world = (0..ENDPOINTS).fold(world, |world, n| {
            world.with(placed(behind(workload(&format!("c{n}"), "node-2", &address(n)), "cart"), "a"))
        });
        // How often each is (first, second) of the two.
        let drawn = |world: &World| {
            let mut times = BTreeMap::<SocketAddr, [usize; 2]>::new();
            for _ in 0..DRAWS {
                let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.128.9:80") else { panic!("no route") };
                let [first, second] = &targets[..] else { panic!("{} targets", targets.len()) };
                assert_ne!(first.address(), second.address());
                times.entry(first.address()).or_default()[0] += 1;
                times.entry(second.address()).or_default()[1] += 1;
            }
            times
        };
        let even = drawn(&world);
        assert_eq!(even.len(), ENDPOINTS, "{near:?}: {even:?}");
        // 500 each; what lies outside of this does so by chance once in 10^12 times.
        assert!(even.values().flatten().all(|times| (350..650).contains(times)), "{near:?}: {even:?}");
        let busy: SocketAddr = format!("{}:8080", address(3)).parse().expect("an address");
        let _open = world.loads.enter(busy);
        let one_busy = drawn(&world);
        assert_eq!(one_busy[&busy][0], 0, "{near:?}: {one_busy:?}");
        assert!((850..1_150).contains(&one_busy[&busy][1]), "{near:?}: {one_busy:?}");
    }
}

/// A workload with a place.
fn placed(workload: Workload, zone: &str) -> Workload {
    let telemetry = Telemetry { zone: zone.into(), region: "north".into(), ..Telemetry::default() };
    Workload { telemetry: telemetry.into(), ..workload }
}

#[test]
fn a_service_that_prefers_what_is_close_uses_it_while_there_is_any_and_keeps_one_of_the_next_place_by() {
    let cart = |name: &str, node: &str, ip: &str, zone: &str| placed(behind(workload(name, node, ip), "cart"), zone);
    let world = |near: Near, own_zone: &str, endpoints: &[Workload]| {
        let cart = Service { near, ..service("cart", &["198.18.128.9"]) };
        let world = World::new().service(cart).with(placed(workload("web", "node-1", "198.18.1.5"), own_zone));
        endpoints.iter().cloned().fold(world, World::with)
    };
    // Those that are tried first, and those that stand by.
    let chosen = |near: Near, own_zone: &str, endpoints: &[Workload]| {
        let world = world(near, own_zone, endpoints);
        let mut names = [BTreeSet::new(), BTreeSet::new()];
        for _ in 0..60 {
            let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.128.9:80") else { panic!("no route") };
            assert_eq!(targets.len(), TRIES.min(endpoints.len()), "{near:?}");
            assert!(targets.windows(2).all(|pair| pair[0].address() != pair[1].address()), "{near:?}");
            for (names, target) in names.iter_mut().zip(&targets) {
                names.insert(target.pod_name().expect("a pod").name.clone());
            }
        }
        names.map(|names| names.into_iter().collect::<Vec<_>>().join(" ")).join(", ")
    };
    let here = cart("here", "node-1", "198.18.1.6", "a");
    let beside = cart("beside", "node-1", "198.18.1.7", "a");
    let zone = cart("zone", "node-2", "198.18.2.7", "a");
    let zoned = cart("zoned", "node-2", "198.18.2.8", "a");
    let far = cart("far", "node-3", "198.18.3.7", "b");
    let all = [here.clone(), zone.clone(), far.clone()];
    assert_eq!(chosen(Near::Any, "a", &all), "far here zone, far here zone");
    assert_eq!(chosen(Near::PreferZone, "a", &all), "here zone, far");
    assert_eq!(chosen(Near::PreferZone, "a", &all[..2]), "here zone, here zone", "there is nothing further away");
    assert_eq!(chosen(Near::PreferZone, "b", &all), "far, here zone");
    assert_eq!(chosen(Near::PreferZone, "c", &all), "far here zone, far here zone", "there is none close");
    assert_eq!(chosen(Near::PreferZone, "", &all), "far here zone, far here zone", "nobody knows where the client is");
    assert_eq!(chosen(Near::PreferNode, "a", &all), "here, zone");
    assert_eq!(chosen(Near::PreferNode, "a", &[here.clone(), far.clone()]), "here, far");
    assert_eq!(chosen(Near::PreferNode, "", &all), "here, far zone", "nobody knows what is in its zone");
    let node_and_zone = [here.clone(), beside, zone.clone(), zoned.clone(), far.clone()];
    assert_eq!(chosen(Near::PreferNode, "a", &node_and_zone), "beside here, zone zoned");
    assert_eq!(chosen(Near::PreferNode, "a", &[zone.clone(), zoned, far.clone()]), "zone zoned, far");
    assert_eq!(chosen(Near::PreferNode, "a", std::slice::from_ref(&far)), "far, ");
    // Of two that are close the less loaded one, also where one of further away stands by.
    let world = world(Near::PreferZone, "a", &all);
    let _open = world.loads.enter("198.18.1.6:8080".parse().expect("an address"));
    for _ in 0..20 {
        assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.2.7:8080");
    }
    // Of the same name in another region: another place.
    let elsewhere = Workload {
        telemetry: Telemetry { zone: "a".into(), region: "south".into(), ..Telemetry::default() }.into(),
        ..far
    };
    assert_eq!(chosen(Near::PreferZone, "a", &[zone, elsewhere]), "zone, far");
}

#[test]
fn where_nobody_knows_the_region_of_the_client_or_of_an_endpoint_the_zone_decides() {
    for (own, there) in [("north", ""), ("", "north"), ("", "")] {
        let at = |region: &str, zone: &str, workload: Workload| {
            let telemetry = Telemetry { zone: zone.into(), region: region.into(), ..Telemetry::default() };
            Workload { telemetry: telemetry.into(), ..workload }
        };
        let cart = |name: &str, ip: &str, zone: &str| at(there, zone, behind(workload(name, "node-2", ip), "cart"));
        let world = World::new()
            .service(Service { near: Near::PreferZone, ..service("cart", &["198.18.128.9"]) })
            .with(at(own, "a", workload("web", "node-1", "198.18.1.5")))
            .with(cart("c1", "198.18.2.7", "a"))
            .with(cart("c2", "198.18.2.8", "b"))
            .with(cart("c3", "198.18.2.9", ""));
        for _ in 0..20 {
            assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.2.7:8080", "{own:?} {there:?}");
        }
    }
}

#[test]
fn the_asked_family_is_preferred_and_the_other_used_when_there_is_no_choice() {
    let mut dual = behind(workload("c1", "node-2", "198.18.2.7"), "cart");
    dual.addresses.push("fd77::7".parse().expect("address"));
    let vips = &["198.18.128.9", "fd77:0:0:80::9"];
    let world = World::new().service(service("cart", vips)).with(dual);
    assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.2.7:8080");
    assert_eq!(world.way("[fd77:0:0:80::9]:80"), "tunnel [fd77::7]:8080");
    let four = behind(workload("c1", "node-2", "198.18.2.7"), "cart");
    let world = World::new().service(service("cart", vips)).with(four);
    assert_eq!(world.way("[fd77:0:0:80::9]:80"), "tunnel 198.18.2.7:8080");
}

#[test]
fn endpoints_share_the_load_and_a_second_one_stands_by() {
    let mut world = World::new().service(service("cart", &["198.18.128.9"]));
    for last in 1..=4 {
        world = world.with(behind(workload(&format!("c{last}"), "node-2", &format!("198.18.2.{last}")), "cart"));
    }
    let mut held = Vec::new();
    for _ in 0..400 {
        let Ok(Routed::Inside { targets, service }) = world.resolve("198.18.128.9:80") else { panic!("no route") };
        assert_eq!(service.map(|service| service.key.clone()), Some(key("cart")));
        assert_eq!(targets.len(), TRIES);
        assert_ne!(targets[0].address(), targets[1].address());
        held.push(world.loads.enter(targets[0].address()));
    }
    for last in 1..=4 {
        let load = world.loads.of(format!("198.18.2.{last}:8080").parse().expect("address"));
        // Exact shares are 100; two random choices keep within a few of it.
        assert!((90..=110).contains(&load), "{load}");
    }
    held.clear();
    assert_eq!(world.loads.of("198.18.2.1:8080".parse().expect("address")), 0);
}

#[test]
fn a_services_further_names_are_accepted_from_its_endpoints() {
    let other = Identity::parse("spiffe://old.local/ns/shop/sa/cart").expect("identity");
    let with_names = Service { subject_alt_names: vec![other.clone()], ..service("cart", &["198.18.128.9"]) };
    let world = World::new().service(with_names).with(behind(workload("c1", "node-2", "198.18.2.7"), "cart"));
    let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.128.9:80") else { panic!("no route") };
    let Way::Tunnel { accepted } = targets[0].way() else { panic!("no tunnel") };
    assert_eq!(accepted.len(), 2);
    assert_eq!(accepted[1], other);
}

#[test]
fn while_pods_are_still_being_named_one_of_this_node_is_waited_for_and_others_are_not() {
    let mut world = World::new();
    world.pods = Arc::default();
    let world = world
        .with(workload("cart", "node-1", "198.18.1.6"))
        .with(workload("far", "node-2", "198.18.2.7"))
        .service(service("cart", &["198.18.128.9"]))
        .with(behind(workload("c1", "node-1", "198.18.1.7"), "cart"));
    for to in ["198.18.1.6:8080", "198.18.128.9:80"] {
        let no_route = world.resolve(to).expect_err("not yet");
        assert_eq!((no_route.reason(), no_route.may_change()), (Reason::NotReady, true));
    }
    assert_eq!(world.way("198.18.2.7:8080"), "tunnel 198.18.2.7:8080");
    let world = world.local(2, "cart", "198.18.1.6");
    assert_eq!(world.way("198.18.1.6:8080"), "short 198.18.1.6:8080");
    world.pods.complete();
    assert_eq!(world.way("198.18.128.9:80"), "tunnel 198.18.1.7:8080");
}

/// The endpoint `name` of the service cart, which stands there like this.
fn standing(name: &str, node: &str, address: &str, readiness: Readiness) -> Workload {
    let mut workload = behind(workload(name, node, address), "cart");
    workload.services.entry(key("cart")).or_default().readiness = readiness;
    workload
}

#[test]
fn endpoints_that_come_to_their_end_serve_while_there_is_none_that_is_ready() {
    let ending = |name: &str, node: &str, address: &str| Workload {
        health: Health::Unhealthy,
        ..standing(name, node, address, Readiness::Ending)
    };
    let cart = |near| World::new().service(Service { near, ..service("cart", &["198.18.128.9", "fd77:0:0:80::9"]) });
    let (one, other) = (ending("c1", "node-2", "198.18.2.7"), ending("c2", "node-1", "198.18.1.6"));
    for (vip, ending, ready) in
        [("198.18.128.9:80", "198.18.2.7", "198.18.2.8"), ("[fd77:0:0:80::9]:80", "fd77:0:0:2::7", "fd77:0:0:2::8")]
    {
        let last = Workload { addresses: vec![ending.parse().expect("address")], ..one.clone() };
        let host = |ip: &str| SocketAddr::new(ip.parse().expect("address"), 8080);
        let world = cart(Near::Any).with(last.clone());
        assert_eq!(world.way(vip), format!("tunnel {}", host(ending)));
        let world = world.with(behind(workload("c3", "node-2", ready), "cart"));
        for _ in 0..20 {
            assert_eq!(world.way(vip), format!("tunnel {}", host(ready)));
        }
    }
    // Those of this node alone: the last one of it serves, whoever is ready elsewhere.
    let world = cart(Near::OnlyNode).with(one).with(behind(workload("c3", "node-2", "198.18.2.8"), "cart"));
    assert_eq!(world.way("198.18.128.9:80"), "NoEndpoint");
    assert_eq!(world.with(other).way("198.18.128.9:80"), "tunnel 198.18.1.6:8080");
}

#[test]
fn what_a_slice_says_of_an_endpoint_comes_before_what_its_pod_says() {
    let unready =
        |readiness| Workload { health: Health::Unhealthy, ..standing("c1", "node-2", "198.18.2.7", readiness) };
    let cart = || World::new().service(service("cart", &["198.18.128.9"]));
    assert_eq!(cart().with(unready(Readiness::Unsaid)).way("198.18.128.9:80"), "NoEndpoint");
    assert_eq!(cart().with(unready(Readiness::Ready)).way("198.18.128.9:80"), "tunnel 198.18.2.7:8080");
}

#[test]
fn the_own_nodes_endpoints_alone_are_for_those_addresses_that_the_cluster_gave() {
    let external = |near| Some(External { vips: vec!["203.0.113.9".parse().expect("address")], near });
    let cart = |near| Service {
        near: Near::OnlyNode,
        external: external(near),
        ..service("cart", &["198.18.128.9", "203.0.113.9"])
    };
    let far = placed(behind(workload("c1", "node-2", "198.18.2.7"), "cart"), "b");
    let world = World::new().service(cart(Near::Any)).with(far.clone());
    assert_eq!(world.way("198.18.128.9:80"), "NoEndpoint");
    assert_eq!(world.way("203.0.113.9:80"), "tunnel 198.18.2.7:8080");
    assert_eq!(world.way("[::ffff:203.0.113.9]:80"), "tunnel 198.18.2.7:8080");
    let world = World::new()
        .service(cart(Near::PreferZone))
        .with(placed(workload("web", "node-1", "198.18.1.5"), "a"))
        .with(far)
        .with(placed(behind(workload("c2", "node-2", "198.18.2.8"), "cart"), "a"));
    for _ in 0..20 {
        assert_eq!(world.way("203.0.113.9:80"), "tunnel 198.18.2.8:8080");
    }
}

#[test]
fn hints_of_slices_lead_clients_as_they_lead_them_with_kube_proxy() {
    let hinted = |name: &str, address: &str, zones: &[&str], nodes: &[&str]| {
        let mut workload = placed(behind(workload(name, "node-2", address), "cart"), "b");
        let strings = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        workload.services.entry(key("cart")).or_default().hints =
            Hints { zones: strings(zones), nodes: strings(nodes) };
        workload
    };
    let chosen = |endpoints: &[Workload]| {
        let world = World::new().service(service("cart", &["198.18.128.9"]));
        let world = world.with(placed(workload("web", "node-1", "198.18.1.5"), "a"));
        let world = endpoints.iter().cloned().fold(world, World::with);
        let ways: BTreeSet<String> = (0..60).map(|_| world.way("198.18.128.9:80")).collect();
        ways.iter()
            .map(|way| way.trim_start_matches("tunnel 198.18.2.").trim_end_matches(":8080"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let other_zone = || hinted("c2", "198.18.2.2", &["b"], &[]);
    assert_eq!(chosen(&[hinted("c1", "198.18.2.1", &["a", "c"], &[]), other_zone()]), "1", "of the client's zone");
    assert_eq!(chosen(&[hinted("c1", "198.18.2.1", &[], &[]), other_zone()]), "1 2", "one has none");
    assert_eq!(chosen(&[hinted("c1", "198.18.2.1", &["c"], &[]), other_zone()]), "1 2", "none is for this zone");
    let nodes = [hinted("c1", "198.18.2.1", &["b"], &["node-1"]), hinted("c2", "198.18.2.2", &["a"], &["node-2"])];
    assert_eq!(chosen(&nodes), "1", "of the client's node, before its zone");
}

#[test]
fn a_client_of_a_service_with_session_affinity_is_led_to_one_endpoint_and_another_one_when_that_is_gone() {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let cart = Service { session_affinity: Some(TIMEOUT), ..service("cart", &["198.18.128.9"]) };
    let endpoints = (1..=4).map(|n| behind(workload(&format!("c{n}"), "node-2", &format!("198.18.2.{n}")), "cart"));
    let mut world = endpoints.fold(World::new().service(cart), World::with);
    let first = world.way("198.18.128.9:80");
    for step in 1..30 {
        world.now += TIMEOUT / 2;
        let Ok(Routed::Inside { targets, .. }) = world.resolve("198.18.128.9:80") else { panic!("no route") };
        assert_eq!(targets.len(), 1, "no other is tried");
        assert_eq!(world.way("198.18.128.9:80"), first, "connection {step}");
    }
    // Whatever its load is.
    let busy = first.trim_start_matches("tunnel ").parse().expect("an address");
    let _open: Vec<Load> = (0..10).map(|_| world.loads.enter(busy)).collect();
    assert_eq!(world.way("198.18.128.9:80"), first);
    let gone = first.trim_start_matches("tunnel 198.18.2.").trim_end_matches(":8080").to_owned();
    world.mesh.remove_workload(&WorkloadUid(format!("Kubernetes//Pod/shop/c{gone}")));
    let second = world.way("198.18.128.9:80");
    assert_ne!(second, first);
    let world = world.with(behind(workload(&format!("c{gone}"), "node-2", &format!("198.18.2.{gone}")), "cart"));
    assert_eq!(world.way("198.18.128.9:80"), second, "it is back, and forgotten");
    // Clients by other addresses may be led elsewhere.
    let all: BTreeSet<String> = (1..40)
        .map(|n| World { client: IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, n]), ..world.clone() })
        .map(|world| world.way("198.18.128.9:80"))
        .collect();
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn what_is_to_be_reached_through_a_waypoint_is_refused_as_a_destination_and_calls_others_itself() {
    let led = |workload: Workload| Workload { needs_waypoint: true, ..workload };
    let world = World::new().with(led(workload("cart", "node-2", "198.18.2.7")));
    assert_eq!(world.way("198.18.2.7:8080"), "WaypointNeeded");
    let world = world.with(led(workload("near", "node-1", "198.18.1.6"))).local(2, "near", "198.18.1.6");
    assert_eq!(world.way("198.18.1.6:8080"), "WaypointNeeded", "not by the short way either");
    let to_service = Service { needs_waypoint: true, ..service("cart", &["198.18.128.9"]) };
    let endpoint = behind(workload("c1", "node-2", "198.18.2.8"), "cart");
    let world = World::new().service(to_service).with(endpoint);
    assert_eq!(world.way("198.18.128.9:80"), "WaypointNeeded");
    let world = world.with(led(workload("web", "node-1", "198.18.1.5")));
    assert_eq!(world.way("198.18.2.8:8080"), "tunnel 198.18.2.8:8080");
}
