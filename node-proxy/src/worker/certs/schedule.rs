//! When the next attempt for an identity is due and which one goes first: pure, so that it can be tried with any time.

use std::time::Duration;

/// Attempts that run at the same time for prefetch and renewal.
pub(super) const BACKGROUND: usize = 8;
/// Attempts at the same time in all: what is above [`BACKGROUND`] is only for connections that wait.
pub(super) const TOTAL: usize = 16;
/// A connection waits: tried again this soon after a failure, whatever the backoff says.
pub(super) const WAITING_RETRY: Duration = Duration::from_secs(1);
/// First pause after a failure (ztunnel: 0.5 to 1 s).
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause while there is no certificate: a new pod should not wait minutes after the control plane is back.
const BACKOFF_WITHOUT: Duration = Duration::from_secs(15);
/// Longest pause while there is one (ztunnel's value).
const BACKOFF_WITH: Duration = Duration::from_secs(150);

/// Who goes first; smaller is sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A connection waits.
    Waiting,
    /// A pod has the identity and there is no certificate yet.
    Prefetch,
    /// Half of the certificate's life is over.
    Renewal,
}

impl Priority {
    /// How many attempts may run when one of this priority starts.
    pub(super) fn limit(self) -> usize {
        match self {
            Priority::Waiting => TOTAL,
            Priority::Prefetch | Priority::Renewal => BACKGROUND,
        }
    }
}

/// The pause after so many failures in a row. `jitter` is 0 to 1: the pause is 80 to 120 % of the doubled step.
pub(super) fn backoff(failures: u32, has_certificate: bool, jitter: f64) -> Duration {
    let longest = if has_certificate { BACKOFF_WITH } else { BACKOFF_WITHOUT };
    let step = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    step.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

/// How long from now until a certificate is renewed: half of its life, 5 % of the life earlier or later, so that a node's
/// certificates, had in one second, are not renewed in one second.
pub(super) fn renew_in(until_half_life: Duration, life: Duration, jitter: f64) -> Duration {
    let spread = life.mul_f64(0.1);
    (until_half_life + spread.mul_f64(jitter.clamp(0.0, 1.0))).saturating_sub(spread / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_longest() {
        let pauses: Vec<u64> = (1..=10).map(|n| backoff(n, false, 0.5).as_millis() as u64).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000, 15000, 15000]);
        assert_eq!(backoff(30, true, 0.5), BACKOFF_WITH);
        assert_eq!(backoff(u32::MAX, true, 1.0), BACKOFF_WITH.mul_f64(1.2));
    }

    #[test]
    fn renewal_lies_around_half_life() {
        let life = Duration::from_secs(1000);
        assert_eq!(renew_in(life / 2, life, 0.0), Duration::from_secs(450));
        assert_eq!(renew_in(life / 2, life, 1.0), Duration::from_secs(550));
        assert_eq!(renew_in(Duration::ZERO, life, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_waiting_connection_comes_first_and_has_room_that_others_cannot_take() {
        assert!(Priority::Waiting < Priority::Prefetch && Priority::Prefetch < Priority::Renewal);
        const { assert!(TOTAL > BACKGROUND) };
    }
}
