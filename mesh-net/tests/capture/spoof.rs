//! Sockets towards the application that bear the client's address.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mesh_net::capture::{FWMARK, Mode, Stage};
use mesh_net::socket::{self, Family, Purpose};

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, assert_untouched, client, connect, listen, mark, pod,
    raw_socket,
};

const APP: u16 = 8080;

/// Dials the pod's application as if from `source`, as the proxy does.
pub fn towards_app(bed: &Bed, family: usize, source: SocketAddr, port: u16) -> io::Result<TcpStream> {
    let kind = [Family::V4, Family::V6][family];
    let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsApp, mark())).unwrap()?;
    socket::bind_source(&minted, source)?;
    connect(socket2::Socket::from(minted), SocketAddr::new(pod(family), port))
}

#[test]
fn the_application_sees_the_client_and_both_directions_work() {
    let bed = Bed::new();
    for stage in [Stage::Redirect, Stage::Drain] {
        let mut session = bed.applied(Mode::Owned, stage);
        let app = listen(&bed.pod, APP);
        for family in FAMILIES {
            let source = SocketAddr::new(client(family), 40_100);
            let mut proxied = towards_app(&bed, family, source, APP).unwrap();
            let (mut served, from) = accept(&app);
            assert_eq!(from, source);
            assert_talks(&mut proxied, &mut served);
        }
        drop(app);
        session.remove().unwrap();
    }
}

#[test]
fn the_clients_own_connection_with_the_same_addresses_lives_beside_it() {
    const MEGABYTE: usize = 1 << 20;
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (app, inbound) = (listen(&bed.pod, APP), listen(&bed.pod, 15006));
    for family in FAMILIES {
        let source = SocketAddr::new(client(family), 40_200);
        let socket = raw_socket(&bed.world, family);
        socket.bind(&source.into()).unwrap();
        let mut dialled = connect(socket, SocketAddr::new(pod(family), APP)).unwrap();
        let (mut captured, from) = accept(&inbound);
        assert_eq!(from, source);
        let mut proxied = towards_app(&bed, family, source, APP).unwrap();
        let (mut served, from) = accept(&app);
        assert_eq!(from, source);
        for (left, right) in [(&mut dialled, &mut captured), (&mut proxied, &mut served)] {
            assert_talks(left, right);
            assert_eq!((transfer(left, right, MEGABYTE), transfer(right, left, MEGABYTE)), (MEGABYTE, MEGABYTE));
        }
        // The end of one is not the end of the other.
        drop((proxied, served));
        assert_talks(&mut dialled, &mut captured);
    }
    assert_untouched(&app, "more than was made");
}

fn transfer(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) -> usize {
    use std::io::{Read, Write};
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&vec![7; bytes]));
        let mut received = vec![0; bytes];
        to.read_exact(&mut received).unwrap();
        writer.join().unwrap().unwrap();
        received.iter().filter(|byte| **byte == 7).count()
    })
}

#[test]
fn a_spoofed_flow_outlives_a_repair_of_its_way_back() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let app = listen(&bed.pod, APP);
    for family in FAMILIES {
        let source = SocketAddr::new(client(family), 40_300);
        let mut proxied = towards_app(&bed, family, source, APP).unwrap();
        let (mut served, _) = accept(&app);
        bed.pod_sh("ip rule del pref 100; ip -6 rule del pref 100; nft flush chain inet culvert output_route");
        session.apply(&crate::bed::spec(Stage::Redirect)).unwrap();
        assert_talks(&mut proxied, &mut served);
    }
}

#[test]
fn a_process_without_the_mark_cannot_pass_for_a_client() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let app = listen(&bed.pod, APP);
    for family in FAMILIES {
        for (tried, mark) in [0, FWMARK].into_iter().enumerate() {
            // Foreign source addresses need a capability over the pod's netns; a process may have that much.
            let kind = [Family::V4, Family::V6][family];
            let socket = bed.pod.run(|| socket::mint(kind, Purpose::TowardsApp, crate::bed::mark())).unwrap().unwrap();
            let socket = socket2::Socket::from(socket);
            socket.set_mark(mark).unwrap();
            let port = 40_400 + u16::try_from(tried).unwrap();
            socket::bind_source(&socket, SocketAddr::new(client(family), port)).unwrap();
            let _ = socket.connect(&SocketAddr::new(pod(family), APP).into());
            // The application's answer leaves for the true client, as it would without a mesh.
            assert!(accept_within(&app, Duration::from_millis(150)).is_none(), "mark {mark:#x}");
        }
    }
}

/// A raw socket with a header of its own is routed by whom it sends to, and says something else in the header: no interface tells that a
/// packet is for the pod itself.
#[test]
fn a_header_that_says_another_destination_than_its_route_does_not_pass_for_a_client() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let _proxy = listen(&bed.pod, 15001);
    for family in FAMILIES {
        let kind = [socket2::Domain::IPV4, socket2::Domain::IPV6][family];
        let raw_protocol = socket2::Protocol::from(255);
        let raw = bed.pod.run(|| socket2::Socket::new(kind, socket2::Type::RAW, Some(raw_protocol))).unwrap().unwrap();
        let mut packet = match (client(family), pod(family)) {
            (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
                let head = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
                [head, from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
                [vec![0x60, 0, 0, 0, 0, 20, 6, 64], from.octets().to_vec(), to.octets().to_vec()].concat()
            }
            _ => unreachable!(),
        };
        packet.extend(40_500_u16.to_be_bytes());
        packet.extend(APP.to_be_bytes());
        packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
        let sent = raw.send_to(&packet, &SocketAddr::new(crate::bed::world(family), 0).into());
        let counters = session.counters().unwrap();
        assert!(sent.is_err(), "family {family}: {counters:?}");
        assert_eq!((counters["local-spoofed"].0, counters["captured-out"].0), (family as u64 + 1, 0));
    }
}
