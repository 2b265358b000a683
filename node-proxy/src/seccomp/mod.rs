//! What each role may ask of the kernel: an allow-list that kills the process on anything else.
//!
//! Two filters are stacked, since one filter has one answer for what it matches: the first answers calls that libraries try and can
//! do without with ENOSYS, the second is the list. The strictest answer wins, so the list names what the first one answers, too.

mod keeper;
mod rules;
mod worker;

use anyhow::Context as _;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use rules::{Is, Rules};

/// Whose list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds namespaces and listeners.
    Keeper,
    /// Moves bytes and holds keys.
    Worker,
}

/// Debug builds only: `trap` prints the number of a refused call before the process ends.
const MODE: &str = "CULVERT_SECCOMP";

/// Installs a role's filters on the calling thread and all that it will start; to be called before there is another.
pub fn install(role: Role) -> anyhow::Result<()> {
    let mut refusal = SeccompAction::KillProcess;
    if cfg!(debug_assertions) && std::env::var(MODE).is_ok_and(|mode| mode == "trap") {
        mesh_net::sigsys::name_the_call().context("install the SIGSYS handler")?;
        refusal = SeccompAction::Trap;
    }
    let list = match role {
        Role::Keeper => keeper::allowed(),
        Role::Worker => worker::allowed(),
    };
    for (rules, otherwise, matched) in [
        (done_without(role), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs())),
        (list, refusal, SeccompAction::Allow),
    ] {
        let architecture =
            std::env::consts::ARCH.try_into().context("seccomp filters are not known for this machine")?;
        let filter = SeccompFilter::new(rules.build()?, otherwise, matched, architecture)?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program).context("install a seccomp filter")?;
    }
    Ok(())
}

/// Tried by libraries, which do without.
fn done_without(role: Role) -> Rules {
    let netlink = (0, Is::Equal(libc::AF_NETLINK as u64));
    // glibc falls back to clone, whose flags a filter can see.
    let rules = Rules::default().all(&[libc::SYS_clone3]);
    // getaddrinfo asks for the machine's addresses to order a name's (seen); unordered will do.
    match role {
        Role::Worker => rules.when(libc::SYS_socket, &[netlink]),
        // It makes the sockets with which the worker asks about a pod's.
        Role::Keeper => {
            rules.when(libc::SYS_socket, &[netlink, (2, Is::Not(libc::NETLINK_SOCK_DIAG.unsigned_abs().into()))])
        }
    }
}

#[cfg(test)]
mod tests;
