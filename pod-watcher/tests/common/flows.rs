//! Connections of a pod with a world beside it, both ways and in both families. Every server says its name first, so that a connection
//! knows who has it: the pod's application, the far server, or the proxy; then it echoes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_net::Netns;
use mesh_net::socket::{self, Reach};

use super::Pod;
use super::run;

const PORT: u16 = 7000;
/// Longer than anything on one machine takes.
const SOON: Duration = Duration::from_secs(5);

/// Who has a connection; four bytes, as said on it.
pub const APP: &str = "app.";
pub const FAR: &str = "far.";
pub const PROXY: &str = "prox";

/// Says its name on each connection, then echoes. Dropping it ends the listener and leaves its connections.
pub struct Server {
    listener: Arc<TcpListener>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    pub fn start(listener: TcpListener, name: &'static str) -> Self {
        listener.set_nonblocking(false).expect("a socket");
        let server = Self { listener: Arc::new(listener), open: Arc::default() };
        let (listener, open) = (server.listener.clone(), server.open.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                open.lock().expect("no panic").push(stream.try_clone().expect("a descriptor"));
                std::thread::spawn(move || drop(echo(stream, name)));
            }
        });
        server
    }

    /// Ends its connections as well, as a proxy does that was told nothing of their pod.
    pub fn cut(self) {
        for stream in self.open.lock().expect("no panic").iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes whoever accepts; the port is free from here on.
        let _ = rustix::net::shutdown(self.listener.as_ref(), rustix::net::Shutdown::Both);
    }
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.write_all(name.as_bytes())?;
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// A pod's application, and the world that it is joined to by a veth pair.
pub struct World {
    pub pod: Netns,
    pub far: Netns,
    _servers: [Server; 2],
}

impl World {
    /// Beside this pod, which gets the addresses that [`Pod::result`] says.
    pub fn of(pod: &Pod) -> Self {
        let far = Netns::create().expect("netns of the world");
        let path = format!("/proc/{}/fd/{}", std::process::id(), far.as_fd().as_raw_fd());
        let up = |netns: &Netns, script: String| netns.run(|| run("sh", &["-ec", &script])).expect("entered");
        up(&pod.netns, format!("ip link add eth0 type veth peer name eth0 netns {path}"));
        for (netns, last) in [(&pod.netns, 2), (&far, 1)] {
            // Without duplicate address detection of the link-local address, or neighbours are not found for a second.
            up(
                netns,
                format!(
                    "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up; ip link set eth0 up; \
                 ip addr add 198.18.1.{last}/24 dev eth0; ip addr add fd77:0:0:1::{last}/64 dev eth0 nodad"
                ),
            );
        }
        let listen = |netns: &Netns, name| {
            let listener =
                netns.run(|| socket::listen(PORT, Reach::OwnPort, 128)).expect("entered").expect("a free port");
            Server::start(TcpListener::from(listener), name)
        };
        let servers = [listen(&pod.netns, APP), listen(&far, FAR)];
        Self { pod: pod.netns.try_clone().expect("a descriptor"), far, _servers: servers }
    }

    /// A new connection to the pod and one from it, in each family.
    pub fn flows(&self) -> Vec<Flow> {
        self.ways().map(|(from, to)| Flow::open(from, to).expect("a connection")).collect()
    }

    /// The same, of which each must be this one's: (to the pod, from the pod).
    pub fn flows_of(&self, inward: &str, outward: &str) -> Vec<Flow> {
        let flows = self.flows();
        let who: Vec<&str> = flows.iter().map(|flow| flow.who.as_str()).collect();
        assert_eq!(who, [inward, outward, inward, outward], "who has new connections to and from the pod");
        flows
    }

    fn ways(&self) -> impl Iterator<Item = (&Netns, SocketAddr)> {
        let way = |ip: &str| SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), PORT);
        let (pod, far) = (["198.18.1.2", "fd77:0:0:1::2"], ["198.18.1.1", "fd77:0:0:1::1"]);
        (0..2).flat_map(move |family| [(&self.far, way(pod[family])), (&self.pod, way(far[family]))])
    }

    /// Opens connections both ways for as long as `work` takes; none may be had by another than the proxy. How many the proxy had.
    pub fn unjudged_none<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let probe = |(from, to)| {
                scope.spawn(move || {
                    let mut judged = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match Flow::open(from, to) {
                            Ok(flow) if flow.who == PROXY => judged += 1,
                            Ok(flow) => panic!("a connection to {to} went past the proxy, to {}", flow.who),
                            // Refused, or not yet served.
                            Err(_) => {}
                        }
                        // Leaves the processor to whom it is all about.
                        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                        let _ = rustix::event::poll(&mut [], Some(&pause));
                    }
                    judged
                })
            };
            let probers: Vec<_> = self.ways().map(probe).collect();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            let judged = probers.into_iter().map(|prober| prober.join().expect("nothing passed unjudged")).sum();
            (done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), judged)
        })
    }
}

/// The client's end of a connection.
#[derive(Debug)]
pub struct Flow {
    stream: TcpStream,
    to: SocketAddr,
    pub who: String,
}

impl Flow {
    fn open(from: &Netns, to: SocketAddr) -> io::Result<Self> {
        let mut stream = from.run(|| TcpStream::connect_timeout(&to, SOON)).map_err(io::Error::other)??;
        stream.set_read_timeout(Some(SOON))?;
        let mut who = [0; 4];
        stream.read_exact(&mut who)?;
        Ok(Self { stream, to, who: String::from_utf8_lossy(&who).into_owned() })
    }

    fn talk(&mut self) -> io::Result<()> {
        let mut heard = [0; 4];
        self.stream.write_all(b"ping")?;
        self.stream.read_exact(&mut heard)?;
        if &heard == b"ping" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// None of them was cut, and each still belongs to whom it did.
pub fn talk(flows: &mut [Flow], when: &str) {
    for flow in flows {
        if let Err(error) = flow.talk() {
            panic!("{when}: the connection to {} that {} has was cut: {error}", flow.to, flow.who);
        }
    }
}
