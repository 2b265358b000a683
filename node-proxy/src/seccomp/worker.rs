//! The worker's list: threads, TCP, its own files, names. No namespaces, no other processes, no raw, packet or netlink sockets, no
//! memory that can be run.

use super::rules::{self, Is, Rules};

/// What glibc's pthread_create asks of clone: a thread and nothing else.
const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// First number of the packet filter's own options at levels IP and IPv6 (IPT_SO_SET_REPLACE).
const FILTER_OPTIONS: u64 = 64;

/// Options at SOL_SOCKET: none that attaches a program (SO_ATTACH_*), changes the mark, the device or the credentials.
const SOCKET_OPTIONS: [libc::c_int; 14] = [
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_KEEPALIVE,
    libc::SO_LINGER,
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_OOBINLINE,
    libc::SO_PRIORITY,
    libc::SO_BUSY_POLL,
    libc::SO_INCOMING_CPU,
    libc::SO_ZEROCOPY,
];

pub fn allowed() -> Rules {
    let rules = rules::common()
        .all(&[
            // Files: the last good configuration, tokens, roots, the admin socket.
            libc::SYS_pwrite64,
            libc::SYS_open,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_ftruncate,
            libc::SYS_chmod,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_getdents64,
            libc::SYS_fstatfs,
            libc::SYS_flock,
            libc::SYS_inotify_init1,
            libc::SYS_inotify_add_watch,
            libc::SYS_inotify_rm_watch,
            libc::SYS_memfd_create,
            // Bytes.
            libc::SYS_pipe2,
            libc::SYS_splice,
            libc::SYS_sendmmsg,
            libc::SYS_recvmmsg,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_dup,
            libc::SYS_sysinfo,
            libc::SYS_getrusage,
            libc::SYS_sched_getparam,
            libc::SYS_sched_getscheduler,
            libc::SYS_mlock,
            libc::SYS_munlock,
        ])
        .when(libc::SYS_clone, &[(0, Is::Whole(THREAD.unsigned_abs().into()))])
        .when(libc::SYS_prctl, &[(0, Is::Equal(libc::PR_SET_NAME.unsigned_abs().into()))])
        .when(libc::SYS_prctl, &[(0, Is::Equal(libc::PR_SET_VMA.unsigned_abs().into()))])
        .when(libc::SYS_ioctl, &[(1, Is::Equal(libc::FIONREAD))])
        .when(libc::SYS_setsockopt, &[(1, Is::Equal(libc::IPPROTO_TCP as u64))])
        .when(libc::SYS_setsockopt, &[(1, Is::Equal(libc::IPPROTO_IP as u64)), (2, Is::Below(FILTER_OPTIONS))])
        .when(libc::SYS_setsockopt, &[(1, Is::Equal(libc::IPPROTO_IPV6 as u64)), (2, Is::Below(FILTER_OPTIONS))]);
    let rules = SOCKET_OPTIONS.iter().fold(rules, |rules, option| {
        let (level, option) = (libc::SOL_SOCKET.unsigned_abs(), option.unsigned_abs());
        rules.when(libc::SYS_setsockopt, &[(1, Is::Equal(level.into())), (2, Is::Equal(option.into()))])
    });
    let rules = rules::fcntl(
        rules,
        &[
            libc::F_DUPFD,
            libc::F_DUPFD_CLOEXEC,
            libc::F_GETFD,
            libc::F_SETFD,
            libc::F_GETFL,
            libc::F_SETFL,
            libc::F_ADD_SEALS,
            libc::F_GET_SEALS,
            libc::F_SETPIPE_SZ,
            libc::F_GETPIPE_SZ,
            libc::F_SETLK,
            libc::F_OFD_SETLK,
        ],
    );
    // To the keeper, from admins; glibc tries its name cache.
    let rules = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM]
        .into_iter()
        .fold(rules, |rules, kind| rules::socket(rules, libc::AF_UNIX, kind, &[0]));
    [libc::AF_INET, libc::AF_INET6].into_iter().fold(rules, |rules, family| {
        let rules = rules::socket(rules, family, libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP]);
        // Names are asked over UDP.
        rules::socket(rules, family, libc::SOCK_DGRAM, &[0, libc::IPPROTO_UDP])
    })
}
