//! Each case runs in a process of its own: this test binary again, told by an environment variable what to try under which filter.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Output};

use rustix::net::{AddressFamily, SocketType};

use super::*;

const TRY: &str = "CULVERT_TEST_SECCOMP_TRY";
/// What a child prints when the call came back: `returned:<errno or ok>`.
const RETURNED: &str = "returned:";

/// Not a test of its own: the child's side of all others. Without the variable it does nothing.
#[test]
fn child() {
    let Ok(what) = std::env::var(TRY) else { return };
    let (role, what) = what.split_once(' ').expect("role and what to try");
    let role = if role == "keeper" { Role::Keeper } else { Role::Worker };
    let prepared = mesh_net::Netns::create().expect("needs root");
    install(role).expect("filters");
    let answer = attempt(what, &prepared);
    // Not println: its capture by the harness is not the process's output.
    let _ = writeln!(std::io::stderr(), "{RETURNED}{answer}");
    std::process::exit(0);
}

fn attempt(what: &str, netns: &mesh_net::Netns) -> String {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let raw = |family, kind, protocol: i32| {
        let protocol = std::num::NonZeroU32::new(protocol.unsigned_abs()).map(rustix::net::Protocol::from_raw);
        rustix::net::socket(family, kind, protocol).map(drop)
    };
    let answer = match what {
        "setns" => move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)),
        #[allow(deprecated)] // The safe form: CLONE_NEWNET shares no descriptor table.
        "unshare" => rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET),
        "ptrace" => {
            mesh_net::sigsys::ptrace_traceme().map_err(|error| rustix::io::Errno::from_io_error(&error).expect("errno"))
        }
        "execve" => {
            let error = Command::new("/bin/true").exec();
            Err(rustix::io::Errno::from_io_error(&error).expect("errno"))
        }
        "fork" => Command::new("/bin/true")
            .status()
            .map(drop)
            .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)),
        "raw" => raw(AddressFamily::INET, SocketType::RAW, libc::IPPROTO_TCP),
        "raw6" => raw(AddressFamily::INET6, SocketType::RAW, libc::IPPROTO_ICMPV6),
        "ping" => raw(AddressFamily::INET, SocketType::DGRAM, libc::IPPROTO_ICMP),
        "packet" => raw(AddressFamily::PACKET, SocketType::DGRAM, 0),
        "vsock" => raw(AddressFamily::VSOCK, SocketType::STREAM, 0),
        "netlink" => raw(AddressFamily::NETLINK, SocketType::RAW, libc::NETLINK_SOCK_DIAG),
        "netfilter" => raw(AddressFamily::NETLINK, SocketType::RAW, libc::NETLINK_NETFILTER),
        "kill" => {
            rustix::process::kill_process(rustix::process::getppid().expect("parent"), rustix::process::Signal::CONT)
        }
        "mount" => rustix::mount::mount("none", "/mnt", "tmpfs", rustix::mount::MountFlags::empty(), None),
        "thread" => {
            std::thread::spawn(|| ()).join().expect("thread");
            Ok(())
        }
        "udp" => std::net::UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|_| rustix::io::Errno::IO),
        "mark" => {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("tcp");
            socket2::SockRef::from(&socket)
                .set_mark(7)
                .map_err(|error| rustix::io::Errno::from_io_error(&error).expect("errno"))
        }
        "keeper's work" => {
            keepers_work(netns);
            Ok(())
        }
        "worker's work" => {
            workers_work();
            Ok(())
        }
        other => panic!("{other}"),
    };
    match answer {
        Ok(()) => "ok".to_owned(),
        Err(errno) => errno.raw_os_error().to_string(),
    }
}

/// What a role uses itself, read through its filter.
fn uses_something() {
    let usage = mesh_daemon::process::Usage::now();
    assert!(
        usage.resident_bytes > 0 && usage.open_fds > 2 && usage.max_fds > 2 && usage.start_seconds > 0.0,
        "{usage:?}"
    );
}

/// The whole of what the keeper does with the kernel.
fn keepers_work(netns: &mesh_net::Netns) {
    uses_something();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let dir = std::env::temp_dir().join(format!("culvert-seccomp-{}", std::process::id()));
        let listener = mesh_net::seqpacket::AsyncListener::bind(&dir, 0o660).expect("bind");
        let near = mesh_net::seqpacket::AsyncConn::connect(&dir).expect("connect");
        let far = listener.accept().await.expect("accept");
        far.peer().expect("peer");
        near.send(b"x", &[netns.as_fd()]).await.expect("send");
        let packet = far.recv().await.expect("recv").expect("open");
        let passed = mesh_net::Netns::from_fd(packet.fds.into_iter().next().expect("one")).expect("netns");
        let mark = mesh_model::Mark::from_random(7).expect("mark");
        passed
            .run(|| {
                let _listener =
                    mesh_net::socket::listen(15001, mesh_net::socket::Reach::Steered, mesh_net::socket::somaxconn())
                        .expect("listen");
                for family in [mesh_net::socket::Family::V4, mesh_net::socket::Family::V6] {
                    for purpose in [mesh_net::socket::Purpose::TowardsApp, mesh_net::socket::Purpose::TowardsPeer] {
                        mesh_net::socket::mint(family, purpose, mark).expect("mint");
                    }
                }
                mesh_net::diag::Diag::open().expect("sock_diag");
            })
            .expect("entered");
        let _stop = tokio::time::timeout(std::time::Duration::from_millis(1), mesh_daemon::signals::stop()).await;
    });
}

/// Much of what the worker does; the lab runs the rest.
fn workers_work() {
    uses_something();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let dir = std::env::temp_dir().join(format!("culvert-seccomp-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("mkdir");
        let file = dir.join("new");
        let mut written = std::fs::File::create(&file).expect("create");
        written.write_all(b"x").expect("write");
        written.sync_all().expect("fsync");
        std::fs::rename(&file, dir.join("kept")).expect("rename");
        std::fs::read_dir(&dir).expect("list").for_each(drop);
        let admin = mesh_daemon::admin::bind(&dir.join("admin.sock")).expect("admin");
        drop(admin);
        std::fs::remove_file(dir.join("admin.sock")).expect("unlink");
        std::fs::remove_file(dir.join("kept")).expect("unlink");
        let listener = tokio::net::TcpListener::bind("[::]:0").await.expect("listen");
        let port = listener.local_addr().expect("bound").port();
        let near = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let (far, _) = listener.accept().await.expect("accept");
        mesh_net::socket::nodelay(&near).expect("nodelay");
        mesh_net::socket::keepalive(&far).expect("keepalive");
        let keepalive = mesh_net::socket_options::Keepalive {
            idle: std::time::Duration::from_secs(5),
            interval: std::time::Duration::from_secs(3),
            count: 3,
        };
        mesh_net::socket_options::keepalive(&near, keepalive).expect("keepalive");
        mesh_net::socket_options::urgent_inline(&near).expect("urgent bytes");
        mesh_net::socket_options::outstanding(&near).expect("what is outstanding");
        mesh_net::socket_options::waiting(&listener).expect("the accept queue");
        assert_eq!(rustix::io::ioctl_fionread(&near).expect("unread"), 0);
        mesh_net::socket::reset_on_close(&far).expect("linger");
        mesh_net::socket::original_dst(&far);
        // Names: glibc's resolver on a thread of tokio's.
        tokio::net::lookup_host("localhost:80").await.expect("resolve").for_each(drop);
        let _ = tokio::net::lookup_host("no-such-name.invalid:80").await;
        let memfd = rustix::fs::memfd_create("certificates", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::GROW).expect("seal");
        std::thread::Builder::new().name("data-0".to_owned()).spawn(|| ()).expect("thread").join().expect("join");
        // A panic prints and unwinds; the worker's tasks may.
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err());
        let _stop = tokio::time::timeout(std::time::Duration::from_millis(1), mesh_daemon::signals::stop()).await;
    });
}

fn run(role: &str, what: &str) -> Output {
    let room = tempfile::tempdir().expect("room for files");
    // The image has no name service modules. Those that a machine names would be loaded as code, which the filter refuses, rightly.
    const PLAIN_NAMES: &str =
        "if [ -e /etc/nsswitch.conf ]; then echo 'hosts: files dns' > \"$TMPDIR/nsswitch.conf\" &&
        mount --bind \"$TMPDIR/nsswitch.conf\" /etc/nsswitch.conf || exit 1; fi; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", PLAIN_NAMES, "sh"]).arg(std::env::current_exe().expect("this test"));
    // With one test thread the child runs it on its main thread, as the daemons install their filters.
    command.args(["--exact", "seccomp::tests::child", "--nocapture", "--test-threads=1"]).env("TMPDIR", room.path());
    command.env(TRY, format!("{role} {what}")).env(MODE, "trap").output().expect("child runs")
}

fn said(output: &Output) -> String {
    let mut text = String::new();
    output.stderr.as_slice().read_to_string(&mut text).expect("text");
    text
}

#[track_caller]
fn refused(role: &str, what: &str) {
    // In trap mode the call is named, unless signals are blocked at that moment (posix_spawn does that): then it kills.
    let output = run(role, what);
    let text = said(&output);
    let named = output.status.code() == Some(159) && text.contains("refused system call");
    let killed = output.status.signal() == Some(libc::SIGSYS);
    assert!(named || killed, "{role} {what}: {:?} {text}", output.status);
}

#[track_caller]
fn returns(role: &str, what: &str, expected: &str) {
    let text = said(&run(role, what));
    assert!(text.contains(&format!("{RETURNED}{expected}")), "{role} {what}: {text}");
}

#[test]
fn the_worker_cannot_leave_its_namespaces_start_programs_or_touch_other_processes() {
    for what in ["setns", "unshare", "ptrace", "execve", "fork", "mount", "kill"] {
        refused("worker", what);
    }
}

#[test]
fn the_worker_cannot_make_raw_packet_or_netlink_sockets_nor_change_a_mark() {
    for what in ["raw", "raw6", "ping", "packet", "vsock", "mark"] {
        refused("worker", what);
    }
    returns("worker", "netlink", &libc::ENOSYS.to_string());
}

#[test]
fn the_worker_can_do_its_work() {
    returns("worker", "thread", "ok");
    returns("worker", "worker's work", "ok");
}

#[test]
fn the_keeper_can_do_its_work_and_little_else() {
    returns("keeper", "keeper's work", "ok");
    returns("keeper", "netfilter", &libc::ENOSYS.to_string());
    for what in ["unshare", "ptrace", "execve", "fork", "mount", "kill", "raw", "packet", "udp", "thread"] {
        refused("keeper", what);
    }
}

#[test]
fn a_refused_call_kills_the_process() {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "seccomp::tests::child", "--nocapture", "--test-threads=1"]);
    let output = command.env(TRY, "worker setns").env_remove(MODE).output().expect("child runs");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
}
