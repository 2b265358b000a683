//! From the rules and sockets of the release before: nothing is cut, and what begins then is captured by the rules of now.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use mesh_net::capture::{Mode, Stage};
use mesh_net::socket::{self, Purpose, Reach};
use socket2::Socket;

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, client, connect, dial, listen_as_app, mark, pod, spec, world,
};

const APP: u16 = 8080;

/// A listener of the release before: none had a mark, and only that of 15006 was transparent.
fn listen_as_before(bed: &Bed, port: u16) -> TcpListener {
    let reach = if port == 15006 { Reach::Steered } else { Reach::OwnPort };
    TcpListener::from(bed.pod.run(|| socket::listen(port, reach, 64)).unwrap().unwrap())
}

/// Its rules, its ip rules and its routes.
fn capture_as_before(bed: &Bed) {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/capture/schema2.nft");
    bed.pod_sh(&format!(
        "nft -f {} && for f in -4 -6; do ip $f rule add fwmark 0xc71002/0x7fffffff lookup 100 pref 100 && \
         ip $f rule add oif lo lookup 100 pref 101 && ip $f route add local default dev lo table 100 proto static; done",
        rules.display()
    ));
}

/// Both ends of a connection.
type Pair = (&'static str, TcpStream, TcpStream);

#[test]
fn attempts_that_fail_leave_no_more_rules_each_time() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    let _open: Vec<_> =
        (0..2).map(|_| (dial(&bed.world, SocketAddr::new(pod(0), APP)).unwrap(), accept(&app).0)).collect();
    capture_as_before(&bed);
    let mut session = bed.session(Mode::Plain);
    session.limit(1);
    let rules = || bed.pod_sh("nft list table inet culvert | grep -c counter");
    session.apply(&spec(Stage::Redirect)).unwrap_err();
    let after_one = rules();
    for _ in 0..3 {
        session.apply(&spec(Stage::Redirect)).unwrap_err();
    }
    assert_eq!(rules(), after_one);
}

#[test]
fn rules_of_the_release_before_give_way_and_no_connection_is_cut() {
    let bed = Bed::new();
    let (app, far) = (listen_as_app(&bed.pod, APP), listen_as_app(&bed.world, APP));
    let (mut open, to_pod, to_world): (Vec<Pair>, _, _) = (
        Vec::new(),
        |family: usize| SocketAddr::new(pod(family), APP),
        |family: usize| SocketAddr::new(world(family), APP),
    );
    for family in FAMILIES {
        open.push(("from before, in", dial(&bed.world, to_pod(family)).unwrap(), accept(&app).0));
        open.push(("from before, out", dial(&bed.pod, to_world(family)).unwrap(), accept(&far).0));
    }
    capture_as_before(&bed);
    let [outbound, inbound, tunnel] = [15001, 15006, 15008].map(|port| listen_as_before(&bed, port));
    for family in FAMILIES {
        open.push(("captured, in", dial(&bed.world, to_pod(family)).unwrap(), accept(&inbound).0));
        open.push(("captured, out", dial(&bed.pod, to_world(family)).unwrap(), accept(&outbound).0));
        let to = SocketAddr::new(pod(family), 15008);
        open.push(("tunnel, in", dial(&bed.world, to).unwrap(), accept(&tunnel).0));
        let kind = socket::Family::of(world(family));
        let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsPeer, mark())).unwrap().unwrap();
        // Not transparent then.
        let minted = Socket::from(minted);
        if family == 0 { minted.set_ip_transparent_v4(false) } else { minted.set_ip_transparent_v6(false) }.unwrap();
        open.push(("tunnel, out", connect(minted, to_world(family)).unwrap(), accept(&far).0));
        let caller = SocketAddr::new(client(family), 44_000);
        open.push((
            "to the application",
            crate::spoof::towards_app(&bed, family, caller, APP).unwrap(),
            accept(&app).0,
        ));
    }

    // As the keeper of now does with listeners that it takes over.
    for listener in [&outbound, &inbound, &tunnel] {
        socket::set_reach(listener, Reach::Owned(mark())).unwrap();
    }
    // Those that come until the rules change: their sockets have the listener's mark.
    for family in FAMILIES {
        open.push(("captured and marked, in", dial(&bed.world, to_pod(family)).unwrap(), accept(&inbound).0));
        open.push(("captured and marked, out", dial(&bed.pod, to_world(family)).unwrap(), accept(&outbound).0));
    }
    let mut session = bed.session(Mode::Plain);
    assert!(session.read().unwrap().is_some() && session.is_former());
    session.apply(&spec(Stage::Redirect)).unwrap();
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
    assert!(!session.is_former());
    for family in ["-4", "-6"] {
        assert_eq!(bed.pod_sh(&format!("ip {family} rule | grep -w 'lookup 100'; true")), "");
    }

    for (what, left, right) in &mut open {
        let talk = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_talks(left, right)));
        assert!(talk.is_ok(), "{what}: {:?} to {:?}", left.local_addr(), left.peer_addr());
    }
    for family in FAMILIES {
        let mut inward = dial(&bed.world, to_pod(family)).unwrap();
        assert_talks(&mut inward, &mut accept(&inbound).0);
        let mut outward = dial(&bed.pod, to_world(family)).unwrap();
        assert_talks(&mut outward, &mut accept(&outbound).0);
    }
    assert_untouched(&app, "what begins after the upgrade");
    // Each ends as it would have: by its own FIN, both ways.
    for (what, mut left, mut right) in open {
        left.shutdown(Shutdown::Write).unwrap();
        assert_eq!(right.read(&mut [0; 9]).unwrap(), 0, "{what}");
        right.shutdown(Shutdown::Write).unwrap();
        assert_eq!(left.read(&mut [0; 9]).unwrap(), 0, "{what}");
    }
    session.remove().unwrap();
}
