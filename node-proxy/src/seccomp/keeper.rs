//! The keeper's list: one thread, unix sockets, TCP and sock_diag sockets in the pods' namespaces, and setns.

use super::rules::{self, Is, Rules};

/// NS_GET_NSTYPE: what kind of namespace a passed descriptor is of.
const NS_GET_NSTYPE: u64 = libc::NS_GET_NSTYPE;

pub fn allowed() -> Rules {
    let rules = rules::common()
        .all(&[
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_chmod,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            // Counting its own descriptors.
            libc::SYS_getdents64,
            // Its level and option are of our own making: nobody's input reaches them.
            libc::SYS_setsockopt,
        ])
        .when(libc::SYS_setns, &[(1, Is::Equal(libc::CLONE_NEWNET as u64))])
        .when(libc::SYS_ioctl, &[(1, Is::Equal(NS_GET_NSTYPE))]);
    let rules =
        rules::fcntl(rules, &[libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_GET_SEALS]);
    let rules = rules::socket(rules, libc::AF_UNIX, libc::SOCK_SEQPACKET, &[0]);
    let rules = rules::socket(rules, libc::AF_INET, libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP]);
    rules::socket(rules, libc::AF_INET6, libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP])
}
