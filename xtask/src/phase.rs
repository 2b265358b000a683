//! What is being done, and how long it took: printed, so that a slow phase is seen.

use std::io::Write as _;
use std::time::Instant;

/// One line to the person, on standard error.
pub fn say(line: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "xtask: {line}");
}

/// Runs one phase and prints its time.
pub fn run<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    say(&format!("{name} ..."));
    let begun = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(&format!("{name}: {outcome} in {:.1} s", begun.elapsed().as_secs_f64()));
    result
}
