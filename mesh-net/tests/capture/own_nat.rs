//! Translations that the pod made itself: what passes is translated there and back, what is captured is the proxy's as it was called.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use mesh_model::Exclusions;
use mesh_model::ports::OUTBOUND;
use mesh_net::capture::{Mode, Stage};

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, client, dial, listen, listen_as_app, spec, world,
};

/// Where the pod's rule leads what is called at [`CALLED`], at whatever address.
const APP: u16 = 8080;
const CALLED: u16 = 9999;

fn translate(bed: &Bed) {
    let [v4, v6] = FAMILIES.map(world);
    bed.pod_sh(&format!(
        "nft 'table inet own {{ chain out {{ type nat hook output priority -100; \
         meta nfproto ipv4 tcp dport {CALLED} dnat ip to {v4}:{APP}; \
         meta nfproto ipv6 tcp dport {CALLED} dnat ip6 to [{v6}]:{APP}; }}; }}'"
    ));
}

/// A connection to an address and port where nobody listens, of which the rule makes one that is answered.
fn called(bed: &Bed, far: &TcpListener, family: usize) -> (TcpStream, TcpStream) {
    let near = dial(&bed.pod, SocketAddr::new(client(family), CALLED)).unwrap();
    (near, accept(far).0)
}

#[test]
fn a_flow_from_before_that_the_pod_translates_lives_through_every_stage_and_no_longer_than_it_is_known() {
    let bed = Bed::new();
    translate(&bed);
    let far = listen(&bed.world, APP);
    let mut flows = FAMILIES.map(|family| called(&bed, &far, family));
    let mut session = bed.session(Mode::Plain);
    for stage in [Stage::Redirect, Stage::Drain, Stage::Redirect] {
        session.apply(&spec(stage)).unwrap();
        flows.iter_mut().for_each(|(near, far)| assert_talks(near, far));
    }
    // Conntrack knows the flow still: that alone is no pass.
    bed.pod_sh("nft 'flush set inet culvert before4; flush set inet culvert before6'");
    for (near, far) in &mut flows {
        far.write_all(b"late").unwrap();
        assert!(far.read(&mut [0; 4]).is_err(), "refused by a reset");
        near.set_nonblocking(true).unwrap();
        assert!(near.read(&mut [0; 4]).is_err(), "nothing comes to the application");
    }
    session.remove().unwrap();
}

#[test]
fn a_flow_to_an_excluded_port_that_the_pod_translates_passes_there_and_back() {
    let bed = Bed::new();
    translate(&bed);
    let mut exclusions = Exclusions::default();
    exclusions.outbound_ports.insert(CALLED);
    let mut session = bed.session(Mode::Owned);
    session.exclude(exclusions);
    session.apply(&spec(Stage::Redirect)).unwrap();
    let far = listen(&bed.world, APP);
    for family in FAMILIES {
        let (mut near, mut far) = called(&bed, &far, family);
        assert_talks(&mut near, &mut far);
    }
}

#[test]
fn a_flow_that_is_captured_is_the_proxys_as_it_was_called_whatever_the_pod_translates() {
    let bed = Bed::new();
    translate(&bed);
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (outbound, far) = (listen(&bed.pod, OUTBOUND), listen_as_app(&bed.world, APP));
    for family in FAMILIES {
        let to = SocketAddr::new(client(family), CALLED);
        let mut near = dial(&bed.pod, to).unwrap();
        let (mut captured, _) = accept(&outbound);
        assert_eq!(mesh_net::socket::steered_dst(&captured).map(mesh_model::OrigDst::addr), Some(to));
        assert_talks(&mut near, &mut captured);
    }
    assert_untouched(&far, "a captured connection");
}
