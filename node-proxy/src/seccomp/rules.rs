//! A list of system calls, some with conditions on their arguments.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// A condition on one argument. Only the low 32 bits are compared where the kernel reads an int; [`Is::Whole`] compares all 64.
#[derive(Clone, Copy, Debug)]
pub enum Is {
    /// Equal to this int.
    Equal(u64),
    /// Any other than this int.
    Not(u64),
    /// Of these bits, exactly the second set is set.
    Bits(u64, u64),
    /// Less than this int.
    Below(u64),
    /// All 64 bits equal to this.
    Whole(u64),
}

/// What a filter matches.
#[derive(Debug, Default)]
pub struct Rules {
    calls: BTreeMap<i64, Vec<Vec<(u8, Is)>>>,
}

impl Rules {
    /// These calls, whatever their arguments.
    pub fn all(mut self, calls: &[i64]) -> Self {
        self.calls.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// This call, if all conditions hold; several such rules for one call are alternatives.
    pub fn when(mut self, call: i64, conditions: &[(u8, Is)]) -> Self {
        self.calls.entry(call).or_default().push(conditions.to_vec());
        self
    }

    /// In the library's terms.
    pub fn build(self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let rule = |conditions: Vec<(u8, Is)>| {
            let conditions = conditions.into_iter().map(|(argument, is)| {
                let (length, comparison, value) = match is {
                    Is::Equal(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value),
                    Is::Not(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value),
                    Is::Bits(mask, value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value),
                    Is::Below(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Lt, value),
                    Is::Whole(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value),
                };
                SeccompCondition::new(argument, length, comparison, value)
            });
            SeccompRule::new(conditions.collect::<Result<_, _>>()?)
        };
        self.calls
            .into_iter()
            .map(|(call, rules)| Ok((call, rules.into_iter().map(rule).collect::<Result<_, _>>()?)))
            .collect()
    }
}

/// What any Rust program with an event loop asks for: memory, time, signals of its own, its end.
pub fn common() -> Rules {
    let own = u64::from(std::process::id());
    Rules::default()
        .all(&[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_lseek,
            libc::SYS_close,
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_openat,
            libc::SYS_readlink,
            libc::SYS_readlinkat,
            libc::SYS_getcwd,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_accept4,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_connect,
            libc::SYS_shutdown,
            libc::SYS_getsockname,
            libc::SYS_getpeername,
            libc::SYS_getsockopt,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_futex,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_clock_getres,
            libc::SYS_clock_nanosleep,
            libc::SYS_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_time,
            libc::SYS_getrandom,
            libc::SYS_sigaltstack,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_restart_syscall,
            libc::SYS_getpid,
            libc::SYS_gettid,
            libc::SYS_getppid,
            libc::SYS_getuid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getegid,
            libc::SYS_uname,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_yield,
            libc::SYS_getcpu,
            libc::SYS_membarrier,
            libc::SYS_rseq,
            libc::SYS_set_robust_list,
            libc::SYS_exit,
            libc::SYS_exit_group,
            // Answered by the filter above this one.
            libc::SYS_clone3,
        ])
        .when(libc::SYS_socket, &[(0, Is::Equal(libc::AF_NETLINK as u64))])
        // Memory that can be written is never run.
        .when(libc::SYS_mmap, &[(2, Is::Bits(libc::PROT_EXEC as u64, 0))])
        .when(libc::SYS_mprotect, &[(2, Is::Bits(libc::PROT_EXEC as u64, 0))])
        // abort: a signal to a thread of this very process.
        .when(libc::SYS_tgkill, &[(0, Is::Equal(own))])
        // Reading a limit of our own: no new limit is given (argument 2).
        .when(libc::SYS_prlimit64, &[(0, Is::Equal(0)), (2, Is::Whole(0))])
        .when(libc::SYS_socketpair, &[(0, Is::Equal(libc::AF_UNIX as u64))])
        .when(libc::SYS_ioctl, &[(1, Is::Equal(libc::FIONBIO))])
        // Is this a terminal? Asked by whoever prints colours.
        .when(libc::SYS_ioctl, &[(1, Is::Equal(libc::TCGETS))])
}

/// fcntl commands that touch nothing but the descriptor.
pub fn fcntl(rules: Rules, commands: &[libc::c_int]) -> Rules {
    commands
        .iter()
        .fold(rules, |rules, command| rules.when(libc::SYS_fcntl, &[(1, Is::Equal(command.unsigned_abs().into()))]))
}

/// `socket(family, kind, protocol)` with kind less its flags.
pub fn socket(rules: Rules, family: libc::c_int, kind: libc::c_int, protocols: &[libc::c_int]) -> Rules {
    const KIND: u64 = 0xf;
    protocols.iter().fold(rules, |rules, protocol| {
        rules.when(
            libc::SYS_socket,
            &[
                (0, Is::Equal(family.unsigned_abs().into())),
                (1, Is::Bits(KIND, kind.unsigned_abs().into())),
                (2, Is::Equal(protocol.unsigned_abs().into())),
            ],
        )
    })
}
