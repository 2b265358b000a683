//! A running pod comes into the mesh: what is open lives on, also where that takes more than one attempt.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mesh_net::capture::{Error, Mode, Stage};
use mesh_net::socket;

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, dial, listen, listen_as_app, pod, spec, try_sh, world,
};

const APP: u16 = 8080;

#[test]
fn a_pod_that_is_too_busy_is_left_as_it_was() {
    let bed = Bed::new();
    let (app, far) = (listen_as_app(&bed.pod, APP), listen(&bed.world, APP));
    let mut flows: Vec<(TcpStream, TcpStream)> = Vec::new();
    for family in FAMILIES {
        for _ in 0..3 {
            flows.push((dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0));
            flows.push((dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap(), accept(&far).0));
        }
    }
    let mut session = bed.session(Mode::Owned);
    session.limit(5);
    let refused = session.apply(&spec(Stage::Redirect)).unwrap_err();
    assert!(matches!(refused, Error::TooManyFlows { found: 6, limit: 5 }), "{refused}");
    assert_eq!(session.read().unwrap(), None);
    assert!(!try_sh(&bed.pod, "nft list table inet culvert").0);
    session.limit(6);
    session.apply(&spec(Stage::Redirect)).unwrap();
    flows.iter_mut().for_each(|(left, right)| assert_talks(left, right));
}

#[test]
fn flows_leave_the_sets_with_their_sockets_and_a_lost_set_is_not_learned_again() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    for family in FAMILIES {
        let flow = || (dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0);
        let (mut lives, ends) = (flow(), flow());
        let mut session = bed.applied(Mode::Plain, Stage::Redirect);
        assert_eq!((session.sweep().unwrap(), session.sweep().unwrap()), (2, 2));
        socket::reset_on_close(&ends.0).unwrap();
        drop(ends);
        session.sweep().unwrap();
        // It is gone, and not only left out of the count.
        assert_eq!((session.sweep().unwrap(), session.sweep().unwrap()), (1, 1));
        assert_talks(&mut lives.0, &mut lives.1);
        drop(session);
        // Nobody is there to repair; whoever comes knows by the ip rule that there was a table.
        bed.pod_sh("nft delete table inet culvert");
        let mut session = bed.session(Mode::Plain);
        session.apply(&spec(Stage::Redirect)).unwrap();
        assert_eq!(session.sweep().unwrap(), 0);
        let (left, right) = &mut lives;
        left.write_all(b"ping").unwrap();
        assert!(left.read(&mut [0; 4]).is_err(), "it ends by a reset");
        assert!(right.read(&mut [0; 4]).is_err(), "nothing comes to the application");
        session.remove().unwrap();
    }
}

#[test]
fn a_pod_that_could_not_be_captured_at_first_keeps_its_connections_when_it_can_be() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    let mut open: Vec<_> =
        FAMILIES.map(|family| (dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0)).into();
    let mut session = bed.session(Mode::Plain);
    // Somebody else has every number for a routing table.
    let tables = |verb: &str| {
        bed.pod_sh(&format!(
            "for n in $(seq 15001100 15001115); do ip route {verb} unreachable 192.0.2.1 table $n; done"
        ));
    };
    tables("add");
    let refused = session.apply(&spec(Stage::Redirect));
    assert!(matches!(refused, Err(Error::NoRouteTable)), "{refused:?}");
    let left = bed.pod_sh("nft list tables; ip rule; ip -6 rule");
    assert!(!left.contains("culvert") && !left.contains("150011"), "{left}");
    tables("del");
    session.apply(&spec(Stage::Redirect)).unwrap();
    open.iter_mut().for_each(|(left, right)| assert_talks(left, right));
}

/// tcp(7), TCP_DEFER_ACCEPT: connections come when their client has said something.
#[allow(unsafe_code)] // No crate that is used here has the option.
fn defer_accept(listener: &TcpListener, seconds: libc::c_int) {
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap();
    let (fd, value) = (listener.as_raw_fd(), (&raw const seconds).cast());
    // SAFETY: the listener is open for the whole call, and `value` is valid for reads of `size` bytes.
    let done = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// As Apache and nginx (`deferred`) do: the kernel says once more that it has heard the client, in the middle of the swap or after it.
#[test]
fn a_handshake_that_waits_for_the_clients_first_word_lives_through_the_swap() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    defer_accept(&app, 1);
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    let mut open: Vec<_> = FAMILIES.map(|family| dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap()).into();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    // After a second the kernel says once more that it has heard the client, who says so too: then the connection is there.
    for _ in FAMILIES {
        let (mut right, from) = accept_within(&app, Duration::from_secs(4)).expect("the handshake comes to its end");
        let left = open.iter_mut().find(|left| left.local_addr().unwrap() == from).expect("one of ours");
        assert_talks(left, &mut right);
    }
}

#[test]
fn a_removal_that_does_not_come_to_its_end_leaves_no_ip_rule_without_a_table() {
    let bed = Bed::new();
    let _owner = bed.applied(Mode::Owned, Stage::Redirect);
    let rules = || bed.pod_sh("ip rule; ip -6 rule");
    assert!(rules().contains("15001100"));
    // It may not delete what another owns. (Rules without a table say that its flows were lost: the next enrolment would cut them.)
    bed.session(Mode::Plain).remove().unwrap_err();
    assert!(!rules().contains("15001100"), "{}", rules());
}
