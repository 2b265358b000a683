//! A peer that is gone without a word while it owes an acknowledgement.
//!
//! The kernel's keepalive asks only while nothing is under way; what is under way it sends again for a quarter of an hour
//! (tcp_retries2). TCP_USER_TIMEOUT would end that, but also ends connections to peers that are there and do not read. So the kernel is
//! asked, once a second and only while something is outstanding.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_net::socket_options::{self, Keepalive, Outstanding};
use tokio::time::{Instant, Sleep};

/// How often the kernel is asked, and how long a peer may be silent before no more is read for it.
const LOOK: Duration = Duration::from_secs(1);

/// Of one socket.
pub struct Silence {
    keepalive: Keepalive,
    look: Option<Pin<Box<Sleep>>>,
    /// Since when something may have been outstanding.
    since: Instant,
    holds_back: bool,
}

/// What the kernel's answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing to wait for.
    Settled,
    /// Ask again after this time. Whether the peer is silent by now.
    Wait(Duration, bool),
    /// The peer is gone.
    Lost,
}

impl Silence {
    /// A peer is given up after the same time as by the kernel's keepalive.
    pub fn new(keepalive: Keepalive) -> Self {
        Self { keepalive, look: None, since: Instant::now(), holds_back: false }
    }

    /// Something was written, or the end of data.
    pub fn wrote(&mut self, cx: &mut Context<'_>) {
        if self.look.is_none() {
            self.since = Instant::now();
            let look = self.look.insert(Box::pin(tokio::time::sleep(LOOK)));
            // Only so that the task is woken then.
            let _ = look.as_mut().poll(cx);
        }
    }

    /// Whether the kernel is asked shortly.
    #[cfg(test)]
    pub fn looks(&self) -> bool {
        self.look.is_some()
    }

    /// Whether nothing more should be taken over for this peer: its own side's deadlines are to notice.
    pub fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// Ready when the peer is lost.
    pub fn poll(&mut self, cx: &mut Context<'_>, socket: &impl AsFd) -> Poll<io::Error> {
        loop {
            let Some(look) = &mut self.look else { return Poll::Pending };
            ready!(look.as_mut().poll(cx));
            // An error: there is no connection any more, which is heard otherwise.
            let outstanding = socket_options::outstanding(socket).unwrap_or(Outstanding::Nothing);
            match verdict(self.keepalive, outstanding, self.since.elapsed()) {
                Verdict::Settled => (self.look, self.holds_back) = (None, false),
                Verdict::Wait(pause, silent) => {
                    self.holds_back = silent;
                    look.as_mut().reset(Instant::now() + pause);
                }
                Verdict::Lost => {
                    self.look = None;
                    return Poll::Ready(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}

/// `since`: how long something may have been outstanding at most. The peer may have been silent for longer, for it had nothing to say.
fn verdict(keepalive: Keepalive, outstanding: Outstanding, since: Duration) -> Verdict {
    // A look less: what was written a second after the peer's last word is given up no later than keepalive would give up silence.
    let patience = keepalive.patience().saturating_sub(LOOK).max(LOOK);
    match outstanding {
        Outstanding::Nothing => Verdict::Settled,
        Outstanding::InFlight(silent) => match patience.checked_sub(silent.min(since)) {
            None | Some(Duration::ZERO) => Verdict::Lost,
            Some(left) => Verdict::Wait(left.min(LOOK), silent.min(since) >= LOOK),
        },
        // It answers probes and has no room: it does not read, which it may do for as long as it likes.
        Outstanding::NoRoom(probes, silent) if probes >= keepalive.count && silent.min(since) >= patience => {
            Verdict::Lost
        }
        Outstanding::NoRoom(..) => Verdict::Wait(LOOK, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const KEEPALIVE: Keepalive = Keepalive { idle: seconds(5), interval: seconds(3), count: 3 };

    #[test]
    fn a_peer_is_lost_when_it_has_owed_an_acknowledgement_for_as_long_as_keepalive_waits() {
        let in_flight = |silent, since| verdict(KEEPALIVE, Outstanding::InFlight(seconds(silent)), seconds(since));
        assert_eq!(in_flight(13, 20), Verdict::Lost);
        assert_eq!(in_flight(20, 13), Verdict::Lost);
        // Nothing was outstanding for an hour, and then for a second.
        assert_eq!(in_flight(3600, 1), Verdict::Wait(LOOK, true));
        // It acknowledges now and then.
        assert_eq!(in_flight(0, 3600), Verdict::Wait(LOOK, false));
        assert_eq!(
            verdict(KEEPALIVE, Outstanding::InFlight(Duration::from_millis(12_700)), seconds(60)),
            Verdict::Wait(Duration::from_millis(300), true)
        );
        assert_eq!(verdict(KEEPALIVE, Outstanding::Nothing, seconds(3600)), Verdict::Settled);
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_lost_as_long_as_it_answers_probes() {
        let no_room =
            |probes, silent| verdict(KEEPALIVE, Outstanding::NoRoom(probes, seconds(silent)), seconds(86_400));
        // Probes go two minutes apart in the end.
        assert_eq!(no_room(0, 119), Verdict::Wait(LOOK, false));
        assert_eq!(no_room(1, 121), Verdict::Wait(LOOK, false));
        assert_eq!(no_room(3, 360), Verdict::Lost);
    }
}
