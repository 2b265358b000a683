//! Figures: what a test measured, printed so that a person and a script find it again.

/// Prints one figure in a form that a person and a script find again: `figure: name = value unit (note)`.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display, unit: &str, note: &str) {
    use std::io::Write as _;
    // The harness's own capture is off for these tests; a closed standard output is nobody's problem here.
    let _ = writeln!(std::io::stdout(), "figure: {name} = {value} {unit} ({note})");
}
