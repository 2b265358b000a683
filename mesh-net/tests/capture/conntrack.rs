//! What conntrack forgets or has no room for: captured connections that need it end by a reset, the others do not notice, and nothing
//! passes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use mesh_net::capture::{Mode, Stage};
use mesh_net::socket::{self, Purpose};
use socket2::Socket;

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, assert_untouched, client, connect, dial, listen, listen_as_app,
    mark, pod, raw_socket, world,
};

const APP: u16 = 8080;

/// Listeners of the proxy, and what stands.
struct Standing {
    inbound: TcpListener,
    outbound: TcpListener,
    app: TcpListener,
    far: TcpListener,
}

impl Standing {
    fn open(bed: &Bed) -> Self {
        Self {
            inbound: listen(&bed.pod, 15006),
            outbound: listen(&bed.pod, 15001),
            app: listen_as_app(&bed.pod, APP),
            far: listen(&bed.world, APP),
        }
    }

    /// Connections that conntrack has no part in: out, a tunnel each way, and the application's.
    fn untracked(&self, bed: &Bed, tunnel: &TcpListener, family: usize, caller: u16) -> Vec<(TcpStream, TcpStream)> {
        let to = SocketAddr::new(world(family), APP);
        let out = (dial(&bed.pod, to).unwrap(), accept(&self.outbound).0);
        let tunnelled = (dial(&bed.world, SocketAddr::new(pod(family), 15008)).unwrap(), accept(tunnel).0);
        let minted = bed
            .pod
            .run(|| socket::mint(socket::Family::of(world(family)), Purpose::TowardsPeer, mark()))
            .unwrap()
            .unwrap();
        let onward = (connect(Socket::from(minted), to).unwrap(), accept(&self.far).0);
        let caller = SocketAddr::new(client(family), caller);
        let served = (crate::spoof::towards_app(bed, family, caller, APP).unwrap(), accept(&self.app).0);
        vec![out, tunnelled, onward, served]
    }
}

#[test]
fn connections_of_the_proxys_own_and_captured_ones_on_the_way_out_have_no_entry() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let standing = Standing::open(&bed);
    let tunnel = listen(&bed.pod, 15008);
    for family in FAMILIES {
        standing
            .untracked(&bed, &tunnel, family, 45_000)
            .iter_mut()
            .for_each(|(left, right)| assert_talks(left, right));
        let family = ["ipv4", "ipv6"][family];
        let listed = bed.pod_sh(&format!("conntrack -L -f {family} -p tcp --dport {APP} 2>/dev/null"));
        assert_eq!(listed, "");
    }
    let to = SocketAddr::new(pod(0), APP);
    let _tracked = (dial(&bed.world, to).unwrap(), accept(&standing.inbound).0);
    assert!(bed.pod_sh(&format!("conntrack -L -p tcp --dport {APP} 2>/dev/null")).contains("ESTABLISHED"));
}

#[test]
fn what_a_flush_takes_away_ends_by_a_reset_at_both_ends_and_the_rest_goes_on() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let standing = Standing::open(&bed);
    let tunnel = listen(&bed.pod, 15008);
    for family in FAMILIES {
        let to = SocketAddr::new(pod(family), APP);
        let mut untracked = standing.untracked(&bed, &tunnel, family, 45_000);
        let mut by_caller = (dial(&bed.world, to).unwrap(), accept(&standing.inbound).0);
        let mut by_proxy = (dial(&bed.world, to).unwrap(), accept(&standing.inbound).0);
        bed.pod_sh("conntrack -F 2>/dev/null");
        by_caller.0.write_all(b"in mid-transfer").unwrap();
        assert!(by_caller.0.read(&mut [0; 9]).is_err(), "the caller is told");
        by_proxy.1.write_all(b"in mid-transfer").unwrap();
        assert!(by_proxy.1.read(&mut [0; 9]).is_err(), "the proxy is told");
        untracked.iter_mut().for_each(|(left, right)| assert_talks(left, right));
        let mut anew = dial(&bed.world, to).unwrap();
        assert_talks(&mut anew, &mut accept(&standing.inbound).0);
    }
    assert_untouched(&standing.app, "a flush");
}

/// Datagrams from the pod and back, each a flow of its own: with an answer, so that the kernel does not take one away for another.
fn fill(bed: &Bed) -> Vec<UdpSocket> {
    let most: usize = bed.pod_sh("cat /proc/sys/net/netfilter/nf_conntrack_max").trim().parse().unwrap();
    let family = 0;
    let open = |netns: &mesh_net::Netns, at: SocketAddr| netns.run(|| UdpSocket::bind(at)).unwrap().unwrap();
    let far: Vec<UdpSocket> = (0..16).map(|n| open(&bed.world, SocketAddr::new(world(family), 20_000 + n))).collect();
    let mut kept = Vec::new();
    for port in 0..u16::try_from(most / far.len() + 1000).unwrap() {
        let own = open(&bed.pod, SocketAddr::new(pod(family), 40_000_u16.wrapping_add(port).max(1024)));
        for far in &far {
            let to = far.local_addr().unwrap();
            if own.send_to(b"x", to).is_err() {
                return kept;
            }
            far.set_nonblocking(true).unwrap();
            let mut buffer = [0; 1];
            // Three packets make it one that is kept.
            if let Ok((_, from)) = far.recv_from(&mut buffer) {
                far.send_to(b"y", from).unwrap();
            }
        }
        kept.push(own);
    }
    kept
}

#[test]
fn with_a_full_table_nothing_passes_and_what_needs_no_entry_works() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let standing = Standing::open(&bed);
    let tunnel = listen(&bed.pod, 15008);
    let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
    for family in FAMILIES {
        open.extend(standing.untracked(&bed, &tunnel, family, 45_000));
        open.push((dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&standing.inbound).0));
    }
    let _full = fill(&bed);
    let [found, most] =
        ["count", "max"].map(|what| bed.pod_sh(&format!("cat /proc/sys/net/netfilter/nf_conntrack_{what}")));
    let [found, most] = [found, most].map(|number| number.trim().parse::<u32>().unwrap());
    // One or the other may have come to its end.
    assert!(found + 64 > most, "{found} of {most}: not full");
    open.iter_mut().for_each(|(left, right)| assert_talks(left, right));
    for family in FAMILIES {
        standing
            .untracked(&bed, &tunnel, family, 45_001)
            .iter_mut()
            .for_each(|(left, right)| assert_talks(left, right));
        // One that needs an entry is captured if the kernel makes room, or waits in vain; it reaches no application.
        let dialled = raw_socket(&bed.world, family);
        dialled.set_nonblocking(true).unwrap();
        let _ = dialled.connect(&SocketAddr::new(pod(family), APP).into());
        drop(accept_within(&standing.inbound, std::time::Duration::from_millis(500)));
    }
    assert_untouched(&standing.app, "a full table");
}
