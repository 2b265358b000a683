//! Waiting for facts: the only way the lab waits. A fact that does not come by its deadline is an error that says which.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a fact is looked at. Short against what is waited for (processes starting, files appearing: milliseconds).
const PACE: Duration = Duration::from_millis(2);

/// Looks at a fact until it is there, or fails naming it when `deadline` has passed.
pub fn until<T>(what: &str, deadline: Duration, mut fact: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    let mut pace = PACE;
    loop {
        if let Some(value) = fact() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {:.1} s for {what}, it did not come", deadline.as_secs_f64());
        }
        std::thread::park_timeout(pace);
        pace = (pace * 5 / 4).min(Duration::from_millis(10));
    }
}

/// The same for a condition.
pub fn until_true(what: &str, deadline: Duration, mut fact: impl FnMut() -> bool) -> Result<()> {
    until(what, deadline, || fact().then_some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_that_never_comes_is_named_in_the_error() {
        let error = until_true("the moon", Duration::from_millis(5), || false).expect_err("never true");
        assert!(error.to_string().contains("the moon"), "{error}");
    }
}
