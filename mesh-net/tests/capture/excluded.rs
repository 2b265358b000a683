//! What a pod excludes passes, and nothing more does by it.

use std::net::SocketAddr;

use mesh_model::Exclusions;
use mesh_net::capture::{Mode, Stage};

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, dial, dial_from, listen, listen_as_app, pod, spec, world,
};
use crate::segments::{ACK, SYN, is_reset, segment};

const APP: u16 = 8080;

#[test]
fn an_excluded_port_passes_both_ways_and_lends_nothing_to_whoever_binds_it() {
    let bed = Bed::new();
    let mut exclusions = Exclusions::default();
    // Nobody listens on the second.
    exclusions.inbound_ports.extend([9090, 9091]);
    exclusions.outbound_ports.insert(5432);
    let mut session = bed.session(Mode::Owned);
    session.exclude(exclusions);
    session.apply(&spec(Stage::Redirect)).unwrap();
    let outbound = listen(&bed.pod, 15001);
    let (excluded, far, other) = (listen_as_app(&bed.pod, 9090), listen(&bed.world, 5432), listen(&bed.world, APP));
    for family in FAMILIES {
        let mut inward = dial(&bed.world, SocketAddr::new(pod(family), 9090)).unwrap();
        assert_talks(&mut inward, &mut accept(&excluded).0);
        let mut outward = dial(&bed.pod, SocketAddr::new(world(family), 5432)).unwrap();
        assert_talks(&mut outward, &mut accept(&far).0);
        // From an excluded port to elsewhere: captured, and so are its later packets.
        let own = dial_from(&bed.pod, SocketAddr::new(pod(family), 9091), SocketAddr::new(world(family), APP));
        assert_talks(&mut own.unwrap(), &mut accept(&outbound).0);
        // From a port that is excluded on the way out, towards the application.
        let from = SocketAddr::new(world(family), 5432);
        assert!(is_reset(segment(&bed.world, from, SocketAddr::new(pod(family), APP), ACK, b"EVIL")));
    }
    assert_untouched(&other, "what binds an excluded port");
}

#[test]
fn what_comes_to_an_excluded_port_by_the_proxy_stays_the_proxys_whoever_knows_its_numbers() {
    let bed = Bed::new();
    let mut exclusions = Exclusions::default();
    exclusions.inbound_ports.insert(9090);
    let mut session = bed.session(Mode::Owned);
    session.exclude(exclusions);
    for stage in [Stage::Redirect, Stage::Part] {
        session.apply(&spec(stage)).unwrap();
        let excluded = listen_as_app(&bed.pod, 9090);
        for family in FAMILIES {
            let caller = SocketAddr::new(world(family), 46_000 + u16::from(stage == Stage::Part));
            let mut proxied = crate::spoof::towards_app(&bed, family, caller, 9090).unwrap();
            let (mut served, from) = accept(&excluded);
            assert_eq!(from, caller);
            segment(&bed.world, caller, SocketAddr::new(pod(family), 9090), SYN, b"");
            assert_talks(&mut served, &mut proxied);
            // One that nobody proxies passes as before.
            let mut plain = dial(&bed.world, SocketAddr::new(pod(family), 9090)).unwrap();
            assert_talks(&mut plain, &mut accept(&excluded).0);
        }
        // Nothing of it is remembered for longer than it lives.
        drop(excluded);
        session.sweep().unwrap();
    }
}
