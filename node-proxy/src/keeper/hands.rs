//! What the keeper holds for others: namespaces, listeners, spare sock_diag sockets, the certificates' memfd.
//!
//! Decides nothing: [`super::state`] says which slot, this does it. Dropping an entry closes what belongs to it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use mesh_api::link::proxy::Refused;
use mesh_api::link::worker::{Family, LISTENERS, Purpose};
use mesh_model::{Mark, Reason};
use mesh_net::diag::Diag;
use mesh_net::socket::{self, ListenError, Reach};
use mesh_net::{Netns, NetnsError, NetnsId};
use rustix::fs::SealFlags;

/// What reaches each of the [`LISTENERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaches([Reach; LISTENERS.len()]);

impl Reaches {
    /// For rules of the release before, which translate what is captured: an answer with our mark would not be translated back.
    pub const FORMER: Self = Self([Reach::OwnPort, Reach::Steered, Reach::OwnPort]);

    /// For rules that know the proxy's packets by its sockets.
    pub const fn owned(mark: Mark) -> Self {
        Self([Reach::Owned(mark); LISTENERS.len()])
    }

    fn give(self, listeners: &[OwnedFd; LISTENERS.len()]) -> std::io::Result<()> {
        listeners.iter().zip(self.0).try_for_each(|(listener, reach)| socket::set_reach(listener, reach))
    }
}

/// Where a pod's listeners came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Come {
    /// We opened them.
    Opened,
    /// An older keeper has them as well.
    Inherited,
}

/// Descriptors of one pod.
#[derive(Debug)]
pub struct Held {
    netns: Netns,
    /// In the order of [`LISTENERS`].
    pub listeners: [OwnedFd; LISTENERS.len()],
}

/// Everything held.
#[derive(Debug)]
pub struct Hands {
    home: NetnsId,
    // Shared with packets on their way to the worker, for which a pod may be let go meanwhile.
    pods: HashMap<u32, Rc<Held>>,
    /// Listeners that a predecessor handed over, by pod uid, until pod-watcher has named all pods.
    inherited: HashMap<String, (NetnsId, [OwnedFd; LISTENERS.len()])>,
    spare_diag: Vec<OwnedFd>,
    certificates: Option<Rc<OwnedFd>>,
}

/// Listeners of a pod could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the descriptor is of the keeper's own network namespace, not of a pod's")]
    Own,
    #[error(transparent)]
    Enter(#[from] NetnsError),
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl OpenError {
    fn reason(&self) -> Reason {
        match self {
            OpenError::Own | OpenError::Listen(ListenError::InUse { .. }) => Reason::Conflict,
            OpenError::Enter(_) | OpenError::Listen(ListenError::Kernel { .. }) => Reason::Kernel,
        }
    }

    fn next_step(&self) -> &'static str {
        match self {
            OpenError::Own => "a pod of the host network cannot be enrolled",
            OpenError::Listen(ListenError::InUse { .. }) => {
                "let that program use another port, or leave the pod out with the label culvert.io/mesh=disabled"
            }
            OpenError::Enter(_) | OpenError::Listen(ListenError::Kernel { .. }) => {
                "the keeper needs SYS_ADMIN, NET_ADMIN and free descriptors; look at its log"
            }
        }
    }
}

impl Hands {
    /// Holds nothing. Fails only where `/proc` is missing.
    pub fn new() -> Result<Self, NetnsError> {
        let home = Netns::current()?.id();
        Ok(Self { home, pods: HashMap::new(), inherited: HashMap::new(), spare_diag: Vec::new(), certificates: None })
    }

    /// Takes the listeners of a pod that were handed over, or opens them; `pod` is its name for the message.
    pub fn open(&mut self, slot: u32, netns: Netns, uid: &str, pod: &str, reaches: Reaches) -> Result<Come, Refused> {
        if let Some((_, listeners)) = self.inherited.remove(uid).filter(|(of, _)| *of == netns.id()) {
            if let Err(error) = reaches.give(&listeners) {
                tracing::warn!(pod, %error, "listeners that were handed over keep what reaches them");
            }
            self.pods.insert(slot, Rc::new(Held { netns, listeners }));
            return Ok(Come::Inherited);
        }
        match self.open_listeners(&netns, reaches) {
            Ok(listeners) => {
                self.pods.insert(slot, Rc::new(Held { netns, listeners }));
                Ok(Come::Opened)
            }
            Err(error) => {
                let cause = match std::error::Error::source(&error) {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                };
                let message = format!("pod {pod}: {cause}; {}", error.next_step());
                Err(Refused { reason: error.reason().as_str().to_owned(), message })
            }
        }
    }

    /// Sets what reaches the listeners of a pod that is held, should it be.
    pub fn give(&self, netns: NetnsId, reaches: Reaches) {
        for held in self.pods.values().filter(|held| held.netns.id() == netns) {
            if let Err(error) = reaches.give(&held.listeners) {
                tracing::warn!(%netns, %error, "listeners of a pod keep what reaches them");
            }
        }
    }

    fn open_listeners(&self, netns: &Netns, reaches: Reaches) -> Result<[OwnedFd; LISTENERS.len()], OpenError> {
        if netns.id() == self.home {
            return Err(OpenError::Own);
        }
        let opened = netns.run(|| {
            // The limit is each namespace's own.
            let backlog = socket::somaxconn();
            let [outbound, inbound, tunnel] = LISTENERS;
            let [of_outbound, of_inbound, of_tunnel] = reaches.0;
            let open = |port, reach| socket::listen(port, reach, backlog);
            Ok::<_, ListenError>([open(outbound, of_outbound)?, open(inbound, of_inbound)?, open(tunnel, of_tunnel)?])
        })?;
        Ok(opened?)
    }

    /// Puts listeners aside that a predecessor handed over. Refused unless they are what they are called, in our order: the worker
    /// knows a connection's direction by nothing else.
    pub fn inherit(&mut self, uid: String, netns: NetnsId, fds: Vec<OwnedFd>) -> Result<(), String> {
        let listeners: [OwnedFd; LISTENERS.len()] =
            fds.try_into().map_err(|fds: Vec<OwnedFd>| format!("{} descriptors", fds.len()))?;
        for (listener, port) in listeners.iter().zip(LISTENERS) {
            let is = socket::listening_port(listener).map_err(|error| format!("port {port}: {error}"))?;
            if is != Some(port) {
                return Err(format!("a listener on port {is:?} in the place of {port}"));
            }
        }
        self.inherited.insert(uid, (netns, listeners));
        Ok(())
    }

    /// How many pods' listeners are put aside.
    pub fn inherited(&self) -> usize {
        self.inherited.len()
    }

    /// Closes what was handed over and is of no pod that we were named.
    pub fn forget_inherited(&mut self) -> usize {
        let left = self.inherited.len();
        self.inherited.clear();
        left
    }

    /// Lets go of a slot; nothing happens where nothing is held.
    pub fn close(&mut self, slot: u32) {
        self.pods.remove(&slot);
    }

    /// What is held for a slot.
    pub fn held(&self, slot: u32) -> Option<Rc<Held>> {
        self.pods.get(&slot).cloned()
    }

    /// Makes `count` sockets in the pod's namespace; fewer where the kernel says no, and then why.
    pub fn mint(
        &self,
        slot: u32,
        family: Family,
        purpose: Purpose,
        mark: Mark,
        count: u8,
    ) -> (Vec<OwnedFd>, Option<Reason>) {
        let Some(held) = self.pods.get(&slot) else { return (Vec::new(), Some(Reason::NotReady)) };
        let family = match family {
            Family::V4 => socket::Family::V4,
            Family::V6 => socket::Family::V6,
        };
        let make = || match purpose {
            Purpose::TowardsApp => socket::mint(family, socket::Purpose::TowardsApp, mark),
            Purpose::TowardsPeer => socket::mint(family, socket::Purpose::TowardsPeer, mark),
            Purpose::Inspect => Diag::open().map(Diag::into_fd),
        };
        let made = held.netns.run(|| {
            let mut sockets = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                match make() {
                    Ok(socket) => sockets.push(socket),
                    Err(error) => return (sockets, Some(error)),
                }
            }
            (sockets, None)
        });
        match made {
            Ok((sockets, None)) => (sockets, None),
            Ok((sockets, Some(error))) => {
                tracing::warn!(slot, ?family, ?purpose, %error, "socket cannot be made");
                (sockets, Some(Reason::NoSocket))
            }
            Err(error) => {
                tracing::warn!(slot, %error, "pod's namespace cannot be entered");
                (Vec::new(), Some(Reason::Kernel))
            }
        }
    }

    /// Puts sock_diag sockets aside.
    pub fn put_diag(&mut self, sockets: Vec<OwnedFd>) {
        self.spare_diag.extend(sockets);
    }

    /// How many are put aside.
    pub fn spare_diag(&self) -> usize {
        self.spare_diag.len()
    }

    /// Takes up to `count` of them.
    pub fn take_diag(&mut self, count: u8) -> Vec<OwnedFd> {
        self.spare_diag.split_off(self.spare_diag.len().saturating_sub(usize::from(count)))
    }

    /// Keeps a worker's certificates, unread. Only a memfd is taken: anything else the worker could make us hold for it.
    pub fn keep(&mut self, memfd: OwnedFd) -> bool {
        // fcntl(2): only memfds answer F_GET_SEALS; all else is EINVAL.
        let is_memfd = rustix::fs::fcntl_get_seals(memfd.as_fd()).map(|_: SealFlags| ()).is_ok();
        if is_memfd {
            self.certificates = Some(Rc::new(memfd));
        }
        is_memfd
    }

    /// The certificates that were kept.
    pub fn certificates(&self) -> Option<Rc<OwnedFd>> {
        self.certificates.clone()
    }
}
