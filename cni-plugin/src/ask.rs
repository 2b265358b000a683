//! Asking pod-watcher: one connection, one request, one answer, within a deadline that nothing on the other side can stretch.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mesh_api::link::cni::{Attachment, FromWatcher, ToWatcher};
use mesh_api::link::state_dir::{MarkedVerb, Standing};
use mesh_api::link::{self, Hello};
use mesh_net::seqpacket::Conn;

use crate::env::Container;
use crate::error::{CniError, Code};
use crate::netconf::Netconf;
use crate::standing;

/// pod-watcher greets as soon as it accepts; one that does not within this time counts as down.
const GREETING: Duration = Duration::from_secs(2);
/// Between two dials while pod-watcher is down, unless its directory changes first.
const REDIAL: Duration = Duration::from_millis(250);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    /// Nobody listens.
    #[error("{} cannot be reached: {error}", socket.display())]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// Somebody listens and does not answer, or went away in the middle.
    #[error("{}: {what}", socket.display())]
    Hung {
        /// The socket.
        socket: PathBuf,
        /// How far it got.
        what: String,
    },
    /// The listener is not root: a socket that someone else put there.
    #[error("{} is served by uid {uid}, not by root", socket.display())]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// Who.
        uid: u32,
    },
    /// No common version, or not our messages.
    #[error(transparent)]
    Link(#[from] link::LinkError),
}

/// One question. The work is done on a thread of its own, because even connect() waits for ever on a listener that has stopped
/// accepting; the thread ends with the process.
pub fn once(
    socket: &Path,
    request: &ToWatcher,
    netns: Option<&OwnedFd>,
    until: Instant,
) -> Result<FromWatcher, Silence> {
    let hung = |what: &str| Silence::Hung { socket: socket.to_owned(), what: what.to_owned() };
    let netns = netns
        .map(|fd| fd.try_clone())
        .transpose()
        .map_err(|error| hung(&format!("descriptor of the netns: {error}")))?;
    let (done, answer) = mpsc::sync_channel(1);
    let (path, packet) = (socket.to_owned(), link::encode(request));
    std::thread::spawn(move || done.send(converse(&path, &packet, netns, until)));
    answer
        .recv_timeout(until.saturating_duration_since(Instant::now()))
        .unwrap_or_else(|_| Err(hung("no answer before the deadline (timeoutSeconds)")))
}

fn converse(socket: &Path, packet: &[u8], netns: Option<OwnedFd>, until: Instant) -> Result<FromWatcher, Silence> {
    let hung = |what: String| Silence::Hung { socket: socket.to_owned(), what };
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let conn = Conn::connect(socket).map_err(|error| Silence::Absent { socket: socket.to_owned(), error })?;
    let peer = conn.peer().map_err(|error| hung(format!("its credentials cannot be read: {error}")))?;
    if peer.uid != 0 {
        return Err(Silence::Foreign { socket: socket.to_owned(), uid: peer.uid });
    }
    let receive = |within: Duration, what: &str| -> Result<FromWatcher, Silence> {
        conn.set_deadline(within).map_err(|error| hung(format!("deadline: {error}")))?;
        match conn.recv() {
            Ok(Some(packet)) => Ok(link::decode("cni", &packet.bytes)?),
            Ok(None) => Err(hung(format!("pod-watcher went away before its {what}"))),
            Err(error) => Err(hung(format!("waiting for its {what}: {error}"))),
        }
    };
    conn.set_deadline(GREETING.min(left())).map_err(|error| hung(format!("deadline: {error}")))?;
    let hello = link::encode(&ToWatcher::Hello(Hello::of("cni-plugin")));
    conn.send(&hello, &[]).map_err(|error| hung(format!("greeting it: {error}")))?;
    match receive(GREETING.min(left()), "greeting")? {
        FromWatcher::Hello(hello) => hello.agree()?,
        FromWatcher::Done { .. } | FromWatcher::Failed(_) => {
            return Err(hung("it answered before it greeted".to_owned()));
        }
    };
    let fds: Vec<_> = netns.iter().map(AsFd::as_fd).collect();
    conn.send(packet, &fds).map_err(|error| hung(format!("sending the request: {error}")))?;
    receive(left(), "answer")
}

/// Asks until there is an answer; with pod-watcher down, decides by the namespace: one that has nothing in the mesh passes at once,
/// any other waits until the deadline and then fails with code 11 (CNI 1.1: try again later).
pub fn or_decide(
    conf: &Netconf,
    container: &Container,
    request: &ToWatcher,
    netns: &OwnedFd,
    marker: Option<&Attachment>,
) -> Result<(), CniError> {
    let until = Instant::now() + conf.timeout;
    let pod = format!("{}/{}", container.pod.namespace, container.pod.name);
    loop {
        let silence = match once(&conf.socket, request, Some(netns), until) {
            Ok(FromWatcher::Done { enrolled: _ }) => return Ok(()),
            Ok(FromWatcher::Failed(failure)) => {
                let msg = format!("{} [{}]", failure.msg, failure.reason);
                return Err(CniError::new(Code::Watcher(failure.code), msg, failure.details));
            }
            Ok(FromWatcher::Hello(_)) => {
                Silence::Hung { socket: conf.socket.clone(), what: "it greeted twice".to_owned() }
            }
            Err(silence) => silence,
        };
        let known = standing::of(&conf.state_dir, &container.pod.namespace);
        let mark = || marker.map_or(Ok(()), |attachment| standing::mark(&conf.state_dir, MarkedVerb::Add, attachment));
        match known {
            Some(Standing::Excluded | Standing::Own) => {
                // Never to be enrolled: nothing is lost if the marker cannot be left.
                let _ = mark();
                return Ok(());
            }
            Some(Standing::Plain) if mark().is_ok() => return Ok(()),
            Some(Standing::Plain | Standing::Enrolled) | None => {}
        }
        if until.saturating_duration_since(Instant::now()) <= REDIAL {
            let why = match known {
                None => "is not known to be outside the mesh",
                Some(_) => "is in the mesh",
            };
            return Err(CniError::new(
                Code::TryAgain,
                format!(
                    "pod {pod}: namespace {} {why} and pod-watcher did not answer: {silence}",
                    container.pod.namespace
                ),
                "the runtime tries again by itself; if this goes on, look at the pod-watcher pod of this node (kubectl -n culvert-system get pods -o wide)",
            ));
        }
        wait_for_change(conf.socket.parent());
    }
}

/// Returns when something appears in the socket's directory (pod-watcher is back), or after [`REDIAL`].
fn wait_for_change(dir: Option<&Path>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify;
    let timeout = Timespec { tv_sec: 0, tv_nsec: REDIAL.subsec_nanos().into() };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).ok().filter(|watch| {
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        dir.is_some_and(|dir| inotify::add_watch(watch, dir, flags).is_ok())
    });
    // Interrupted or not: the dial that follows is the check.
    let _ = match &watch {
        Some(watch) => poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timeout)),
        None => poll(&mut [], Some(&timeout)),
    };
}
