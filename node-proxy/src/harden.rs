//! What every process of this binary does to itself before anything else, without needing a privilege.

use anyhow::Context as _;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// No new privileges by exec, no memory for debuggers and core files, as many descriptors as the kernel lets us have.
pub fn process() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    // Also takes ptrace and /proc/PID/mem away from processes of the same user.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid core dumps")?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("forbid core files")?;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).context("raise the descriptor limit to its maximum")?;
    Ok(())
}
