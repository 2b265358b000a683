//! A slow hot path on purpose, so that the load test can show that it would be seen. Only in builds with the feature `testing`.
//!
//! The variable switches it, so that one testing binary runs clean and slow: the comparison is then of nothing but the delay.
//! Without the variable nothing is done.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Microseconds that each read of the copy loop is followed by.
const VARIABLE: &str = "CULVERT_TESTING_DELAY_US";

/// Burns CPU for as long as the variable says: a sleep would be slow too, but cost no CPU.
pub fn burn() {
    static DELAY: OnceLock<Duration> = OnceLock::new();
    let delay = *DELAY.get_or_init(|| given(std::env::var(VARIABLE).ok().as_deref()));
    spin(delay);
}

fn given(text: Option<&str>) -> Duration {
    // What is not a number is no delay: the self-test would fail then and say so.
    Duration::from_micros(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn spin(delay: Duration) {
    if delay.is_zero() {
        return;
    }
    let begun = Instant::now();
    while begun.elapsed() < delay {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_nothing_is_slow() {
        assert_eq!((given(None), given(Some("soon"))), (Duration::ZERO, Duration::ZERO));
        assert_eq!(given(Some("20")), Duration::from_micros(20));
    }

    #[test]
    fn the_time_is_burnt() {
        let begun = Instant::now();
        spin(Duration::from_micros(200));
        assert!(begun.elapsed() >= Duration::from_micros(200));
    }
}
