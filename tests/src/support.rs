//! What several promises need: a mesh that stands, and facts that are waited for. No promise hides here.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Config, Lab};

/// How long a change of configuration may take until a test calls it lost. Far above what is promised anywhere.
pub(crate) const CHANGE: Duration = Duration::from_secs(10);

/// A lab with the mesh on two nodes and the namespaces `shop` (in the mesh) and `outside` (not). Fails without root: a test that needs
/// root is never skipped.
pub(crate) fn mesh(name: &str) -> Result<Lab> {
    lab(Config::default().name(name).with_mesh())
}

/// As [`mesh`], from a given description.
pub(crate) fn lab(config: Config) -> Result<Lab> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: network namespaces, nf_tables and cgroups");
    let lab = Lab::up(config)?;
    if lab.has_mesh() {
        lab.namespace("shop", &[("culvert.io/mesh", "enabled")])?;
        lab.namespace("outside", &[])?;
    }
    Ok(lab)
}

/// Prints one figure in a form that a person and a script find again: `figure: name = value unit (note)`.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display, unit: &str, note: &str) {
    use std::io::Write as _;
    // The harness's own capture is off for these tests; a closed standard output is nobody's problem here.
    let _ = writeln!(std::io::stdout(), "figure: {name} = {value} {unit} ({note})");
}
