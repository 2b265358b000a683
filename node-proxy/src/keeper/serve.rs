//! The keeper's one task: takes events from both links, steps the state, does what it says. No thread, no queue besides the links'.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use mesh_api::link::handover::Handed;
use mesh_api::link::proxy::{FromKeeper, Refused, ToKeeper};
use mesh_api::link::worker::{FromWorker, LISTENERS, ToWorker};
use mesh_model::{Mark, Reason};
use mesh_net::{Netns, NetnsId};
use tokio::time::Instant;

use super::counts::{Counts, Holding};
use super::handover::{self, Giving, Taking};
use super::hands::{Come, Hands, Reaches};
use super::highest::{Highest, Say};
use super::outbox::Carried;
use super::state::{Action, Event, Fds, State};
use super::watcher::{self, WatcherLink};
use super::worker::{self, WorkerLink};

/// The keeper at work.
#[derive(Debug)]
pub struct Keeper {
    state: State,
    hands: Hands,
    watcher: WatcherLink,
    worker: WorkerLink,
    started: Instant,
    /// The netns of the `Add` that is being stepped, and the pod's name for messages.
    arriving: Option<Arriving>,
    counts: Counts,
    highest: Highest,
    /// Asked to stop.
    leaving: bool,
    /// To a successor, and from a predecessor.
    giving: Option<Giving>,
    taking: Option<Taking>,
}

#[derive(Debug)]
struct Arriving {
    netns: Netns,
    uid: String,
    /// For messages.
    name: String,
    reaches: Reaches,
}

impl Keeper {
    /// Holds nothing yet.
    pub fn new(state: State, hands: Hands, watcher: WatcherLink, worker: WorkerLink) -> Self {
        Self {
            state,
            hands,
            watcher,
            worker,
            started: Instant::now(),
            arriving: None,
            counts: Counts::new(),
            highest: Highest::default(),
            leaving: false,
            giving: None,
            taking: None,
        }
    }

    /// Serves until `stop` resolves and then until the worker has gone: it drains, and needs us for that. A worker that is away
    /// at that moment does not come back, since its supervisor was asked to stop as well.
    pub async fn run(mut self, stop: impl Future<Output = &'static str>) {
        let mut stop = std::pin::pin!(stop);
        while !self.leaving || self.worker.is_up() || self.giving.is_some() {
            let deadline = self.state.next_deadline().map(|due| self.started + due);
            let report = self.watcher.takes_stats().then(|| self.counts.due());
            // Every branch may be dropped half-way: both links' `next` are cancel-safe, a timer and a signal lose nothing.
            tokio::select! {
                signal = &mut stop, if !self.leaving => {
                    tracing::info!(signal, pods = self.state.len(), "asked to stop; staying until the worker has gone");
                    self.leaving = true;
                    self.watcher.send_leaving();
                }
                // What a predecessor hands over comes before the pods that pod-watcher names.
                heard = self.watcher.next(), if self.taking.is_none() => self.on_watcher(heard),
                taken = handed(&mut self.taking) => self.on_handed(taken),
                sent = given(&mut self.giving) => {
                    self.giving = None;
                    match sent {
                        Ok(()) => tracing::info!("all is handed to the successor"),
                        Err(error) => tracing::warn!(%error, "the successor takes nothing more"),
                    }
                }
                heard = self.worker.next() => self.on_worker(heard),
                () = until(deadline) => self.step(Event::Tick),
                () = until(report) => self.report(),
            }
        }
        tracing::info!("keeper ends");
    }

    fn report(&mut self) {
        let holding = Holding {
            pods: self.state.len(),
            spare_diag: self.hands.spare_diag(),
            certificates: self.hands.certificates().is_some(),
        };
        let stats = self.counts.report(holding);
        self.watcher.send(&FromKeeper::Stats(stats));
    }

    fn on_watcher(&mut self, heard: watcher::Heard) {
        let (message, fds) = match heard {
            watcher::Heard::Up => {
                self.counts.soon();
                if self.leaving {
                    self.watcher.send_leaving();
                }
                let told = self.highest.watcher_up(self.watcher.keeps_counter());
                self.tell(told);
                return self.step(Event::WatcherUp);
            }
            watcher::Heard::Down => return self.step(Event::WatcherDown),
            watcher::Heard::Message(message, fds) => (message, fds),
        };
        match message {
            // The link takes greetings itself.
            ToKeeper::Hello(_) => {}
            ToKeeper::Node(facts) => self.step(Event::Node(facts)),
            ToKeeper::Counter { highest } => {
                let told = self.highest.watcher_says(highest);
                self.tell(told);
            }
            ToKeeper::Successor => self.give(fds),
            ToKeeper::Predecessor => {
                match one(fds).and_then(|fd| Taking::from(fd).map_err(|error| error.to_string())) {
                    Ok(taking) => self.taking = Some(taking),
                    Err(why) => tracing::warn!(why, "nothing can be taken over; listeners are opened anew"),
                }
            }
            ToKeeper::Diag => {
                let count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
                self.hands.put_diag(fds);
                self.step(Event::Diag(count));
            }
            ToKeeper::Add { id, pod } => {
                let name = format!("{}/{}", pod.namespace, pod.name);
                match netns_of(fds) {
                    Ok(netns) => {
                        let key = netns.id();
                        tracing::info!(pod = name, uid = pod.uid, netns = %key, "pod named by pod-watcher");
                        let reaches = match Mark::from_random(pod.mark).filter(|_| self.watcher.owns_packets()) {
                            Some(mark) => Reaches::owned(mark),
                            None => Reaches::FORMER,
                        };
                        // Before it is acknowledged: pod-watcher writes rules that know them.
                        self.hands.give(key, reaches);
                        self.arriving = Some(Arriving { netns, uid: pod.uid.clone(), name, reaches });
                        self.step(Event::Add { id, pod, netns: key });
                        self.arriving = None;
                    }
                    Err(why) => {
                        let reason = Reason::Malformed.as_str().to_owned();
                        self.counts.refused(&reason);
                        let refused = Some(Refused { reason, message: format!("pod {name}: {why}") });
                        self.watcher.send(&FromKeeper::Ack { id, refused });
                    }
                }
            }
            ToKeeper::Update { id, pod } => self.step(Event::Update { id, pod }),
            ToKeeper::Del { id, uid, drain } => {
                tracing::info!(uid, drain, "pod taken back by pod-watcher");
                self.step(Event::Del { id, uid, drain });
            }
            ToKeeper::SnapshotEnd { id } => {
                self.step(Event::SnapshotEnd { id });
                let left = self.hands.forget_inherited();
                if left > 0 {
                    tracing::info!(left, "listeners were handed over of pods that are not ours to serve; closed");
                }
                tracing::info!(pods = self.state.len(), "pod-watcher's snapshot is complete");
            }
        }
    }

    /// Puts all that is held on its way to a successor. A later one takes the place of an earlier one.
    fn give(&mut self, fds: Vec<OwnedFd>) {
        let mut giving = match one(fds).and_then(|fd| Giving::to(fd).map_err(|error| error.to_string())) {
            Ok(giving) => giving,
            Err(why) => return tracing::warn!(why, "nothing can be handed to the successor"),
        };
        for (slot, uid, NetnsId { dev, ino }) in self.state.held() {
            if let Some(held) = self.hands.held(slot) {
                giving.put(&Handed::Pod { uid: uid.to_owned(), netns: (dev, ino) }, Carried::Listeners(held));
            }
        }
        if let Some(memfd) = self.hands.certificates() {
            giving.put(&Handed::Certificates, Carried::Shared(memfd));
        }
        giving.put(&Handed::End, Carried::Nothing);
        tracing::info!(pods = self.state.len(), "handing over to a successor");
        self.giving = Some(giving);
    }

    fn on_handed(&mut self, taken: Result<(Handed, Vec<OwnedFd>), handover::Broken>) {
        match taken {
            Ok((Handed::Pod { uid, netns: (dev, ino) }, fds)) => {
                let netns = NetnsId { dev, ino };
                if self.state.holds(&uid, netns) {
                    return;
                }
                if let Err(why) = self.hands.inherit(uid.clone(), netns, fds) {
                    tracing::warn!(uid, why, "a pod's listeners were handed over that cannot be used");
                }
            }
            Ok((Handed::Certificates, fds)) => {
                // What our own worker has left is newer.
                if self.hands.certificates().is_some() {
                    return;
                }
                match one(fds).is_ok_and(|memfd| self.hands.keep(memfd)) {
                    true => self.step(Event::Inherited),
                    false => tracing::warn!("certificates were handed over that are no memfd; not kept"),
                }
            }
            Ok((Handed::End, _)) => {
                tracing::info!(pods = self.hands.inherited(), "a predecessor has handed over");
                self.taking = None;
            }
            Err(error) => {
                tracing::warn!(%error, pods = self.hands.inherited(), "a predecessor has not handed over all");
                self.taking = None;
            }
        }
    }

    fn on_worker(&mut self, heard: worker::Heard) {
        match heard {
            worker::Heard::Up { threads } => {
                tracing::info!(threads, pods = self.state.len(), "worker is up");
                self.counts.so_far.workers += 1;
                self.step(Event::WorkerUp { threads });
            }
            worker::Heard::Down => {
                tracing::info!(
                    pods = self.state.len(),
                    minted = self.counts.so_far.minted,
                    short = self.counts.so_far.mint_short.values().sum::<u64>(),
                    "worker is gone; holding on"
                );
                self.counts.so_far.workers_lost += 1;
                self.highest.worker_gone();
                self.step(Event::WorkerDown);
            }
            worker::Heard::Keep(memfd) => {
                if !self.hands.keep(memfd) {
                    tracing::warn!("the worker left something that is not a memfd; not kept");
                }
            }
            worker::Heard::Record(record) => match record {
                FromWorker::Ack { id } => self.step(Event::Acked { id }),
                FromWorker::Nack { id, reason } => self.step(Event::Nacked { id, reason }),
                FromWorker::Mint { request, slot, family, purpose, count } => {
                    self.step(Event::Mint { request, slot, family, purpose, count });
                }
                FromWorker::Counter { counter } => {
                    let told = self.highest.worker_says(self.started.elapsed(), counter);
                    self.tell(told);
                }
                // The link takes these itself.
                FromWorker::Hello { .. } | FromWorker::Keep => {}
            },
        }
    }

    /// What is to be said of the counter of last good configurations.
    fn tell(&mut self, told: Vec<Say>) {
        for say in told {
            match say {
                Say::Worker(highest) => self.worker.send(&ToWorker::Counter { highest }, Carried::Nothing),
                Say::Watcher(highest) if self.watcher.keeps_counter() => {
                    self.watcher.send(&FromKeeper::Counter { highest });
                }
                Say::Watcher(_) => {}
            }
        }
    }

    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now: Duration = self.started.elapsed();
            for action in self.state.step(now, event) {
                events.extend(self.act(action));
            }
        }
    }

    /// Does one action; what came of it, if the state wants to know.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Open { slot } => {
                let Arriving { netns, uid, name, reaches } = self.arriving.take()?;
                let refused = match self.hands.open(slot, netns, &uid, &name, reaches) {
                    Ok(come) => {
                        if come == Come::Opened {
                            self.counts.so_far.listeners_opened += LISTENERS.len() as u64;
                        }
                        tracing::info!(pod = name, slot, ?come, "listeners open");
                        None
                    }
                    Err(refused) => {
                        tracing::warn!(pod = name, reason = refused.reason, message = refused.message, "pod refused");
                        Some(refused)
                    }
                };
                return Some(Event::Opened { slot, refused });
            }
            Action::Close { slot } => {
                self.hands.close(slot);
                tracing::info!(slot, "pod let go");
            }
            Action::ToWatcher(message) => {
                if let FromKeeper::Ack { id, refused: Some(Refused { reason, message }) } = &message {
                    self.counts.refused(reason);
                    tracing::warn!(id, reason, message, "pod-watcher's request refused");
                }
                self.watcher.send(&message);
            }
            Action::ToWorker(message, fds) => {
                if let ToWorker::Minted { short: Some(reason), .. } = &message {
                    self.counts.mint_refused(reason);
                }
                let carried = match fds {
                    Fds::None => Carried::Nothing,
                    Fds::Diag(count) => Carried::Own(self.hands.take_diag(count)),
                    // The state sends listeners of open slots only; without them the worker would refuse the message.
                    Fds::Listeners(slot) => {
                        let held = self.hands.held(slot)?;
                        self.counts.so_far.listeners_handed += held.listeners.len() as u64;
                        Carried::Listeners(held)
                    }
                };
                self.worker.send(&message, carried);
            }
            Action::Unserved { slot, reason } => {
                let pod = self.state.name(slot);
                tracing::warn!(
                    pod, slot, %reason,
                    "the worker refuses a pod that is redirected to it: nobody serves it until it is taken, and it is offered again; look at \
                     the worker's log"
                );
            }
            Action::Certificates => {
                if let Some(memfd) = self.hands.certificates() {
                    self.worker.send(&ToWorker::Certificates, Carried::Shared(memfd));
                }
            }
            Action::Mint { request, slot, family, purpose, mark, count, asked } => {
                let (sockets, failed) = self.hands.mint(slot, family, purpose, mark, count);
                let short = failed.or((count < asked).then_some(Reason::Overloaded));
                self.counts.minted(sockets.len(), short);
                let message = ToWorker::Minted { request, short: short.map(|reason| reason.as_str().to_owned()) };
                self.worker.send(&message, Carried::Own(sockets));
            }
        }
        None
    }
}

/// The one descriptor of an `Add`.
fn netns_of(fds: Vec<OwnedFd>) -> Result<Netns, String> {
    let fd = one(fds).map_err(|why| format!("named with {why} instead of its netns"))?;
    Netns::from_fd(fd).map_err(|error| error.to_string())
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| format!("{} descriptors", fds.len()))?;
    Ok(fd)
}

async fn handed(taking: &mut Option<Taking>) -> Result<(Handed, Vec<OwnedFd>), handover::Broken> {
    match taking {
        Some(taking) => taking.next().await,
        None => std::future::pending().await,
    }
}

async fn given(giving: &mut Option<Giving>) -> std::io::Result<()> {
    match giving {
        Some(giving) => giving.sent().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
