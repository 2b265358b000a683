//! The rows: what is played, and what is expected of the mesh.

use std::time::Duration;

use socket2::SockRef;

use super::Way;
use super::play::{End, Log, PATIENCE};

/// A port that the Service of [`Way::OwnService`] has.
pub(super) const OWN_SERVICE: u16 = 7100;

/// Rows whose code is being mended: they are played and printed, and neither asserted nor told on the page as the same.
pub(super) const NOT_YET: &[&str] = &[
    "the last bytes before a reset",
    "an answer before the request was read",
    "a source port below 1024",
    "an urgent byte",
    "the pod's own address",
    "the pod's own Service",
    "listens on a device",
];

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    Nowhere,
    /// On the family's unspecified address.
    Family,
    /// On `::`, for both families.
    Dual,
    Loopback,
    OwnAddress,
    /// Bound to `eth0`.
    Device,
    /// With TCP MD5 for the caller.
    Signed,
    /// One port further than is called.
    NextPort,
}

/// What is special about a client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    Ordinary,
    PrivilegedPort,
    Signed,
    /// TCP_USER_TIMEOUT of one second.
    UserTimeout,
}

/// What the mesh is held to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// As between plain pods.
    Same,
    /// Otherwise on some way, for this reason.
    Differs(&'static str),
}

/// One row.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) listen: Listen,
    pub(super) dial: Dial,
    pub(super) server: fn(End) -> Log,
    pub(super) client: fn(End) -> Log,
    pub(super) expect: Expect,
    pub(super) ways: &'static [Way],
    /// The server tells who called.
    pub(super) peer: bool,
    /// The port, where it matters.
    pub(super) port: Option<u16>,
    /// Its ways run one after the other.
    pub(super) alone: bool,
    /// nft rules of the pods' own.
    pub(super) client_rules: Option<&'static str>,
    pub(super) server_rules: Option<&'static str>,
}

const ALL: &[Way] = &[Way::SameNode, Way::Tunnel, Way::In, Way::Out];

const fn row(name: &'static str, server: fn(End) -> Log, client: fn(End) -> Log) -> Row {
    Row {
        name,
        listen: Listen::Family,
        dial: Dial::Ordinary,
        server,
        client,
        expect: Expect::Same,
        ways: ALL,
        peer: false,
        port: None,
        alone: false,
        client_rules: None,
        server_rules: None,
    }
}

const EARLY: &str = "The proxy takes the connection first and reaches the backend then: connect succeeds before it is known whether \
    anybody is there, and a refusal comes as a reset of the connection that was already made";

pub(super) const ROWS: &[Row] = &[
    row("the server closes first", greet, end_then_write),
    row("the client half-closes and reads the answer", answer_at_end, ask_and_half_close),
    row("the server half-closes first and goes on reading", half_close_and_read, read_end_then_send),
    row("the client resets", read_to_end, send_and_reset),
    row("the server resets", take_and_reset, send_and_read_to_end),
    row("the last bytes before a reset", last_words_and_reset, ask_and_read),
    row("an answer before the request was read", answer_unread, ask_much),
    row("2 MiB each way at once", much_both_ways, much_both_ways),
    row("half-closed and idle for two seconds", answer_late, ask_and_half_close),
    row("silent for two seconds, then both speak", speak_late, speak_late),
    Row { peer: true, ..row("the caller's address, as the server sees it", greet, read_all) },
    Row { listen: Listen::Dual, ..row("listens on `::` for both families", greet, read_all) },
    Row { listen: Listen::OwnAddress, ..row("listens on the pod's own address", greet, read_all) },
    Row { listen: Listen::Device, ..row("listens on a device", greet, read_all) },
    Row {
        listen: Listen::Loopback,
        expect: Expect::Differs(EARLY),
        ..row("listens on loopback alone", greet, read_all)
    },
    Row {
        listen: Listen::Nowhere,
        expect: Expect::Differs(EARLY),
        ..row("nobody listens at the port", greet, read_all)
    },
    Row {
        server_rules: Some("chain in { type filter hook input priority 0; tcp dport PORT drop; }"),
        expect: Expect::Differs(
            "As above, and the backend's silence is heard as silence on the open connection until the proxy gives the backend up, \
             which may be sooner than the kernel would",
        ),
        ..row("the port is a black hole", greet, read_all)
    },
    Row { dial: Dial::PrivilegedPort, peer: true, ..row("a source port below 1024", greet, read_all) },
    row("an urgent byte", read_urgent, send_urgent),
    Row { ways: &[Way::Own], ..row("the pod's own address", greet, read_all) },
    Row { ways: &[Way::OwnService], port: Some(OWN_SERVICE), ..row("the pod's own Service", greet, read_all) },
    Row {
        listen: Listen::Signed,
        dial: Dial::Signed,
        expect: Expect::Differs(
            "The segments are signed for the other pod's address, and the proxy has no key: exclude the port",
        ),
        ..row("TCP MD5 signatures", greet, read_all)
    },
    Row {
        server_rules: Some("chain in { type filter hook input priority 0; iifname \"eth0\" tcp dport PORT drop; }"),
        expect: Expect::Differs(
            "What the proxy passes on reaches the application over `lo` and not over `eth0`, and what comes in is on a port of the \
             proxy's: rules of the pod's own that name either do not see it. NetworkPolicy and AuthorizationPolicy do",
        ),
        ..row("an INPUT rule of the pod's own that drops the port on `eth0`", greet, read_all)
    },
    Row {
        listen: Listen::NextPort,
        alone: true,
        client_rules: Some("chain out { type nat hook output priority -100; tcp dport PORT redirect to :NEXT; }"),
        expect: Expect::Differs(
            "The proxy takes the connection where the pod's own NAT rule would have, or takes what the rule makes of it",
        ),
        ..row("a NAT rule of the pod's own that changes the port", greet, read_all)
    },
    Row {
        dial: Dial::UserTimeout,
        server_rules: Some(
            "chain in { type filter hook input priority 0; tcp dport PORT tcp flags & psh == psh drop; }",
        ),
        expect: Expect::Differs(
            "What the application has sent is acknowledged by the proxy: its own TCP_USER_TIMEOUT runs towards the proxy, not towards \
             the peer",
        ),
        ..row("TCP_USER_TIMEOUT of one second, and a peer that hears nothing any more", wait, send_and_read)
    },
];

fn greet(mut end: End) -> Log {
    end.send(5);
    end.done()
}

fn read_all(mut end: End) -> Log {
    end.read_to_end();
    end.done()
}

fn end_then_write(mut end: End) -> Log {
    end.read_to_end();
    end.write_until_error();
    end.done()
}

fn answer_at_end(mut end: End) -> Log {
    end.read_to_end();
    end.send(100_000);
    end.done()
}

fn ask_and_half_close(mut end: End) -> Log {
    end.send(1000);
    end.half_close();
    end.read_to_end();
    end.done()
}

fn half_close_and_read(mut end: End) -> Log {
    end.send(5);
    end.half_close();
    end.read_to_end();
    end.done()
}

fn read_end_then_send(mut end: End) -> Log {
    end.read_to_end();
    end.send(5000);
    end.done()
}

fn read_to_end(mut end: End) -> Log {
    end.take(10);
    // Told to go: the reset must not overtake what was sent before.
    end.send(1);
    end.read_to_end();
    end.done()
}

fn send_and_reset(mut end: End) -> Log {
    end.send(10);
    end.take(1);
    end.reset()
}

fn take_and_reset(mut end: End) -> Log {
    end.take(10);
    end.send(5);
    end.take(1);
    end.reset()
}

fn send_and_read_to_end(mut end: End) -> Log {
    end.send(10);
    end.take(5);
    end.send(1);
    end.read_to_end();
    end.done()
}

fn ask_and_read(mut end: End) -> Log {
    end.send(10);
    end.read_to_end();
    end.done()
}

fn last_words_and_reset(mut end: End) -> Log {
    end.take(10);
    end.send(1000);
    end.reset()
}

/// 413 before the body was read: the kernel resets what was not read.
fn answer_unread(mut end: End) -> Log {
    end.take(10);
    end.send(100);
    end.done()
}

fn ask_much(mut end: End) -> Log {
    end.send(100_000);
    end.read_to_end();
    end.done()
}

fn much_both_ways(mut end: End) -> Log {
    const MUCH: usize = 2 << 20;
    let Ok(stream) = end.stream.try_clone() else {
        end.say("cannot be cloned");
        return end.done();
    };
    let log = end.log.clone();
    let writing = std::thread::spawn(move || {
        let mut end = End { stream, log };
        end.send(MUCH);
        end.half_close();
    });
    end.take(MUCH);
    end.read_to_end();
    let _ = writing.join();
    end.done()
}

fn answer_late(mut end: End) -> Log {
    end.read_to_end();
    end.wait(Duration::from_secs(2));
    end.send(1000);
    end.done()
}

fn speak_late(mut end: End) -> Log {
    end.wait(Duration::from_secs(2));
    end.send(100);
    end.take(100);
    end.done()
}

/// The urgent byte in its place among the others, for who asks for that.
fn read_urgent(mut end: End) -> Log {
    if let Err(error) = SockRef::from(&end.stream).set_out_of_band_inline(true) {
        end.say(format!("inline: {error}"));
    }
    end.read_to_end();
    end.done()
}

fn send_urgent(mut end: End) -> Log {
    end.send(1);
    if let Err(error) = SockRef::from(&end.stream).send_out_of_band(b"!") {
        end.say(format!("urgent: {error}"));
    }
    end.send(1);
    end.done()
}

fn wait(end: End) -> Log {
    end.wait(PATIENCE);
    end.done()
}

fn send_and_read(mut end: End) -> Log {
    end.send(5);
    end.read_to_end();
    end.done()
}
