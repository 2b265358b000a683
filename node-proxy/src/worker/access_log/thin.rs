//! What keeps the log thin: sampling by outcome, and a cap on lines per second.

use std::str::FromStr;
use std::time::{Duration, Instant};

use super::super::connection::ConnectionId;
use super::line::{Event, Line, Outcome};

/// One `OUTCOME=N`: one of N connections is kept; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    outcome: Outcome,
    one_of: u32,
}

/// The text is no sampling.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSample {
    /// No `=`.
    #[error("{0:?} is not of the form OUTCOME=N")]
    Form(String),
    /// Left of `=`.
    #[error("{0:?} is no outcome; there are: ok, ended, refused")]
    Outcome(String),
    /// Right of `=`.
    #[error("{0:?} is no whole number: one connection in so many is kept, 0 keeps none")]
    Number(String),
}

impl FromStr for Sample {
    type Err = BadSample;

    fn from_str(text: &str) -> Result<Self, BadSample> {
        let (outcome, number) = text.trim().split_once('=').ok_or_else(|| BadSample::Form(text.to_owned()))?;
        let outcome = Outcome::ALL
            .into_iter()
            .find(|known| known.as_str() == outcome)
            .ok_or_else(|| BadSample::Outcome(outcome.to_owned()))?;
        let one_of = number.parse().map_err(|_| BadSample::Number(number.to_owned()))?;
        Ok(Self { outcome, one_of })
    }
}

/// Which connections are kept: decided by the connection's id alone, so that both its ends keep the same ones, and so that one of
/// ten thousand is among one of a hundred.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    // An id below is kept, by outcome; `None`: all are.
    below: [Option<u64>; Outcome::ALL.len()],
}

impl Sampling {
    /// Outcomes that are not named are kept whole. The last word counts where one is named twice.
    pub fn of(samples: &[Sample]) -> Self {
        let mut below = [None; Outcome::ALL.len()];
        for sample in samples {
            below[sample.outcome as usize] = match sample.one_of {
                0 => Some(0),
                1 => None,
                n => Some(u64::MAX / u64::from(n)),
            };
        }
        Self { below }
    }

    /// Whether this line is kept. A connection that was just set up is taken for one that will be ok.
    pub fn keeps(&self, line: &Line) -> bool {
        let outcome = match line.event {
            Event::Start => Outcome::Ok,
            Event::End(outcome) => outcome,
        };
        self.below[outcome as usize].is_none_or(|below| spread(line.id) < below)
    }
}

/// The id as 64 evenly spread bits: ids are random where we make them, but a caller with another proxy may count.
fn spread(id: ConnectionId) -> u64 {
    let id = id.bits();
    // Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    let mut z = (id as u64) ^ ((id >> 64) as u64).rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A token bucket over the times at which lines were made, not over those at which they are written: a writer that was held up does
/// not pay for it twice. Kept as the time at which the bucket will be full again (GCRA, ITU-T I.371 annex A).
#[derive(Debug)]
pub struct Cap {
    // `None`: no cap.
    interval: Option<Duration>,
    depth: Duration,
    full_at: Option<Instant>,
}

impl Cap {
    /// At most `rate` lines a second (0: no cap), `burst` of them at once.
    pub fn new(rate: u32, burst: Option<u32>) -> Self {
        let interval = (rate > 0).then(|| Duration::from_secs(1) / rate);
        // A bucket that holds nothing would let nothing pass.
        let depth = interval.unwrap_or_default().saturating_mul(burst.unwrap_or(rate).max(1));
        Self { interval, depth, full_at: None }
    }

    /// Takes a token, if there is one.
    pub fn takes(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return true };
        let after = self.full_at.filter(|full_at| *full_at > now).unwrap_or(now) + interval;
        let fits = after.saturating_duration_since(now) <= self.depth;
        if fits {
            self.full_at = Some(after);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::line;
    use super::*;

    #[test]
    fn a_flaw_in_a_sampling_is_named() {
        let bad = |text: &str| text.parse::<Sample>().expect_err(text).to_string();
        assert!(bad("ok").contains("OUTCOME=N"));
        assert!(bad("fine=3").contains("there are: ok, ended, refused"));
        assert!(bad("ok=-1").contains("whole number"));
        assert_eq!("refused=7".parse(), Ok(Sample { outcome: Outcome::Refused, one_of: 7 }));
    }

    fn kept(sampling: &Sampling, event: Event) -> Vec<ConnectionId> {
        let ids = (1..=20_000_u128).map(|n| format!("00-{n:032x}-00f067aa0ba902b7-01"));
        ids.map(|header| ConnectionId::of_traceparent(&header).expect("id"))
            .filter(|id| sampling.keeps(&Line { id: *id, event, ..line() }))
            .collect()
    }

    #[test]
    fn sampling_goes_by_the_id_and_spares_what_was_refused() {
        let of = |flags: &[&str]| Sampling::of(&flags.iter().map(|f| f.parse().expect("flag")).collect::<Vec<_>>());
        let hundredth = of(&["ok=100", "ended=0"]);
        let ok = kept(&hundredth, Event::End(Outcome::Ok));
        // One of a hundred of 20,000 counted ids: 200, within five standard deviations (14 each).
        assert!((130..=270).contains(&ok.len()), "{}", ok.len());
        assert_eq!(ok, kept(&hundredth, Event::Start));
        assert_eq!(kept(&hundredth, Event::End(Outcome::Ended)).len(), 0);
        assert_eq!(kept(&hundredth, Event::End(Outcome::Refused)).len(), 20_000);
        let tenth = kept(&of(&["ok=10"]), Event::End(Outcome::Ok));
        assert!(ok.iter().all(|id| tenth.contains(id)), "what the thinner log keeps is in the thicker one too");
    }

    #[test]
    fn a_cap_passes_the_burst_then_the_rate_and_nothing_more() {
        let start = Instant::now();
        let passed = |cap: &mut Cap, lines: usize, at: Duration| (0..lines).filter(|_| cap.takes(start + at)).count();
        let mut cap = Cap::new(10, Some(25));
        assert_eq!(passed(&mut cap, 100, Duration::ZERO), 25);
        assert_eq!(passed(&mut cap, 100, Duration::from_millis(99)), 0);
        assert_eq!(passed(&mut cap, 100, Duration::from_millis(100)), 1);
        assert_eq!(passed(&mut cap, 100, Duration::from_millis(1100)), 10);
        assert_eq!(passed(&mut cap, 100, Duration::from_secs(60)), 25);
        // Lines of several threads come a little out of order.
        assert_eq!(passed(&mut cap, 100, Duration::from_secs(59)), 0);
        assert_eq!(passed(&mut Cap::new(0, None), 100, Duration::ZERO), 100);
        assert_eq!(passed(&mut Cap::new(7, None), 100, Duration::ZERO), 7);
        assert_eq!(passed(&mut Cap::new(7, Some(0)), 100, Duration::ZERO), 1);
    }
}
