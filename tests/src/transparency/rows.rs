//! The rows: what is played, and what is expected of the mesh.

use super::Way;
use super::ends::*;
use super::play::{End, Log};

/// A port that the Service of [`Way::OwnService`] has.
pub(super) const OWN_SERVICE: u16 = 7100;
/// Ports that the pod of [`Pods::LeftOut`] excludes, in and out.
pub(super) const LEFT_OUT: [u16; 4] = [7200, 7201, 7210, 7220];

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    Nowhere,
    /// On the family's unspecified address, and for that family alone.
    Family,
    /// On the other family's.
    OtherFamily,
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
    /// With a full queue that nobody takes from.
    Full,
    /// With a full queue that has room after 1.5 s.
    FullAtFirst,
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

/// Which pods of the mesh play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pods {
    Usual,
    /// Servers whose packet filters may cut them off from everybody.
    Guarded,
    /// Such a client.
    GuardedCaller,
    /// One that excludes the ports of [`LEFT_OUT`], as the server of what comes in and the client of what goes out.
    LeftOut,
}

/// What the mesh is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// As between plain pods.
    Same,
    /// Otherwise on some way, for this reason.
    Differs(Why),
}

/// Why something stays different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Early,
    OwnPort,
    Urgent,
    OwnNat,
    OwnFilter,
    Signed,
    UserTimeout,
}

impl Why {
    pub(super) const ALL: &[Why] =
        &[Why::Early, Why::OwnPort, Why::Urgent, Why::OwnNat, Why::OwnFilter, Why::Signed, Why::UserTimeout];

    pub(super) fn title(self) -> &'static str {
        match self {
            Why::Early => "Connect succeeds before the backend is reached",
            Why::OwnPort => "The caller's port is not always the one that the server sees",
            Why::Urgent => "An urgent byte is not urgent any more",
            Why::OwnNat => "A pod's own translation of ports is not asked",
            Why::OwnFilter => "A pod's own packet filter sees the proxy's packets",
            Why::Signed => "TCP MD5 signatures are not passed on",
            Why::UserTimeout => "TCP_USER_TIMEOUT runs towards the proxy",
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Why::Early => {
                "The proxy takes the connection first and reaches the backend then: connect succeeds before it is known whether anybody \
                 is there, and a refusal comes as a reset of the connection that was already made. It has to: only the accepted connection \
                 tells where it wants to go. A backend that is silent is heard as silence on the open connection until the proxy gives it up \
                 (`nodeProxy.connectTimeoutSeconds`), which may be sooner than the kernel or the application would."
            }
            Why::OwnPort => {
                "The server always sees the caller's address. A pod of the mesh also sees its port, where that is one that kernels choose \
                 (32768 and up) and is free there. A port below that is replaced by another: one below 1024 needs a power that the proxy does \
                 not have, and any other could not be bound by an application of the called pod that comes later. Towards servers outside, \
                 and towards the pod itself by its own Service, the caller's port is taken already, by the caller's own socket."
            }
            Why::Urgent => {
                "A byte sent by MSG_OOB arrives in its place in the stream, as with SO_OOBINLINE: a server that asks for it by MSG_OOB gets \
                 EINVAL, and reads it among the others. HTTP/2 streams, of which tunnels are made, have no urgent bytes."
            }
            Why::OwnNat => {
                "A connection is the proxy's as the caller addressed it, not as NAT rules of the pod would have it. What the proxy sends to \
                 the application comes from inside the pod, where PREROUTING rules are not asked, so nobody listens at the port that was \
                 called; a packet from outside that such a rule has already changed is nobody's, and is refused. (Its connection could be the \
                 proxy's only with the same four numbers as the application's: `docs/decisions/0012`.) What the application sends is the \
                 proxy's before OUTPUT rules are asked. For callers in clear a PREROUTING rule is kept when the port is excluded by both its \
                 numbers, and an OUTPUT rule when the port that the application calls is excluded (see above)."
            }
            Why::OwnFilter => {
                "What comes in for the application arrives on ports of the proxy's (15008, or 15104 to 15119) and reaches the application \
                 over `lo`; connection tracking is not told of it, so `ct state` is `untracked`. A filter that knows the application's ports \
                 or devices alone drops the former, or does not see the latter. Once the mesh's packets are named in it as well, all is as \
                 without a mesh (see above). NetworkPolicy and AuthorizationPolicy are not concerned."
            }
            Why::Signed => {
                "Segments are signed for the other pod's address with a key that the proxy does not have, so the kernel drops them. An \
                 excluded port is left alone (see above)."
            }
            Why::UserTimeout => {
                "What the application has sent is acknowledged by the proxy. The proxy itself notices a peer outside of the mesh that \
                 acknowledges nothing (`nodeProxy.keepalive`), and resets the connection."
            }
        }
    }
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
    pub(super) pods: Pods,
    /// The server tells who called.
    pub(super) peer: bool,
    /// The port, where it matters.
    pub(super) port: Option<u16>,
    /// No other row is played meanwhile: its rules concern more than its port.
    pub(super) alone: bool,
    /// nft rules of the pods' own. `PORT` is the called port, `NEXT` the one after it, `ADDRESS` the server's, `FAMILY` ip or ip6.
    pub(super) client_rules: Option<&'static str>,
    pub(super) server_rules: Option<&'static str>,
}

const ALL: &[Way] = &[Way::SameNode, Way::Tunnel, Way::In, Way::Out];
const INTO_A_POD: &[Way] = &[Way::SameNode, Way::Tunnel, Way::In];
const INTO_A_POD_AND_ITSELF: &[Way] = &[Way::SameNode, Way::Tunnel, Way::In, Way::Own];
const OUT_OF_A_POD: &[Way] = &[Way::SameNode, Way::Tunnel, Way::Out];
const BY_EXCLUSION: &[Way] = &[Way::In, Way::Out];

/// A filter that lets in what answers, and the application's ports: those of all rows.
macro_rules! input_filter {
    ($states:literal, $more:literal) => {
        concat!(
            "chain in { type filter hook input priority 0; policy drop; iifname \"lo\" accept; ct state { ",
            $states,
            " } accept; meta l4proto ipv6-icmp accept; tcp dport { 20000-32767",
            $more,
            " } accept; }"
        )
    };
}

const REDIRECT_IN: &str = "chain pre { type nat hook prerouting priority -100; tcp dport PORT redirect to :NEXT; }";
const DNAT_IN: &str =
    "chain pre { type nat hook prerouting priority -100; tcp dport PORT dnat FAMILY to ADDRESS:NEXT; }";
const DNAT_OUT: &str = "chain out { type nat hook output priority -100; tcp dport PORT dnat FAMILY to ADDRESS:NEXT; }";

const fn row(name: &'static str, server: fn(End) -> Log, client: fn(End) -> Log) -> Row {
    Row {
        name,
        listen: Listen::Family,
        dial: Dial::Ordinary,
        server,
        client,
        expect: Expect::Same,
        ways: ALL,
        pods: Pods::Usual,
        peer: false,
        port: None,
        alone: false,
        client_rules: None,
        server_rules: None,
    }
}

/// A server that greets, and a caller that reads that.
const fn greeted(name: &'static str) -> Row {
    row(name, greet, read_all)
}

const fn differs(why: Why, row: Row) -> Row {
    Row { expect: Expect::Differs(why), ..row }
}

pub(super) static ROWS: &[Row] = &[
    // How a connection ends.
    row("the server closes, and the client goes on writing", greet, end_then_write),
    row("data to a socket that has been closed", close, send_to_the_closed),
    row("data to a client that has closed", send_to_the_closed, close),
    row("the server ends first, the client last", end_first, end_last),
    row("the server has closed, and the client's end comes after", greet, end_last),
    row("the client half-closes and reads the answer", answer_at_end, ask_and_half_close),
    row("the server half-closes first and goes on reading", half_close_and_read, read_end_then_send),
    row("both half-close at once", ask_and_half_close, ask_and_half_close),
    row("the client resets", read_to_end, send_and_reset),
    row("the server resets", take_and_reset, send_and_read_to_end),
    row("1 KiB and a reset (SO_LINGER 0)", last_words::<1024>, ask_and_read),
    row("16 KiB and a reset", last_words::<16_384>, ask_and_read),
    row("64 KiB and a reset", last_words::<65_536>, ask_and_read),
    row("16 KiB and a reset, by the client", read_all, last_words_unasked::<16_384>),
    row("an answer and a close before the request was read", answer_unread, ask_much),
    // What moves.
    row("2 MiB each way at once", much_both_ways, much_both_ways),
    row("half-closed and idle for two seconds", answer_late, ask_and_half_close),
    row("silent for two seconds, then both speak", speak_late, speak_late),
    row("an urgent byte, read in its place (SO_OOBINLINE)", read_urgent_inline, send_urgent),
    // Where a server listens.
    greeted("listens on IPv4 alone or on IPv6 alone, and is called over that"),
    Row { listen: Listen::Dual, ..greeted("listens on `::` for both families") },
    Row { listen: Listen::OwnAddress, ..greeted("listens on the pod's own address") },
    Row { listen: Listen::Device, ..greeted("listens on a device") },
    // Who calls.
    Row { peer: true, ways: INTO_A_POD_AND_ITSELF, ..greeted("the caller as a pod's server sees it") },
    Row { ways: &[Way::Own], ..greeted("the pod's own address") },
    Row { ways: &[Way::OwnService], port: Some(OWN_SERVICE), ..greeted("the pod's own Service") },
    // With the help that the differences below name.
    Row {
        pods: Pods::Guarded,
        ways: INTO_A_POD,
        alone: true,
        server_rules: Some(input_filter!("established, related, untracked", ", 15008, 15104-15119")),
        ..greeted("an INPUT policy DROP that lets in the application's ports and the mesh's")
    },
    Row {
        pods: Pods::GuardedCaller,
        ways: OUT_OF_A_POD,
        alone: true,
        client_rules: Some(input_filter!("established, related, untracked", "")),
        ..greeted("an INPUT policy DROP of the caller's that lets in `ct state established,untracked`")
    },
    Row {
        listen: Listen::NextPort,
        pods: Pods::LeftOut,
        ways: &[Way::In],
        port: Some(LEFT_OUT[0]),
        server_rules: Some(REDIRECT_IN),
        ..greeted("a PREROUTING redirect of the pod's own between two excluded ports")
    },
    Row {
        listen: Listen::NextPort,
        pods: Pods::LeftOut,
        ways: &[Way::Out],
        port: Some(LEFT_OUT[2]),
        client_rules: Some(DNAT_OUT),
        ..greeted("an OUTPUT DNAT of the caller's own from an excluded port to another")
    },
    Row {
        listen: Listen::Signed,
        dial: Dial::Signed,
        pods: Pods::LeftOut,
        ways: BY_EXCLUSION,
        port: Some(LEFT_OUT[3]),
        ..greeted("TCP MD5 signatures on an excluded port")
    },
    // What stays different.
    differs(Why::Early, Row { listen: Listen::Nowhere, ..greeted("nobody listens at the port") }),
    differs(Why::Early, Row { listen: Listen::Loopback, ..greeted("listens on loopback alone") }),
    differs(Why::Early, Row { listen: Listen::OtherFamily, ..greeted("listens on the other address family alone") }),
    differs(
        Why::Early,
        Row { listen: Listen::FullAtFirst, ..greeted("the queue of the listener is full for a while") },
    ),
    differs(Why::Early, Row { listen: Listen::Full, ..greeted("the queue of the listener stays full") }),
    differs(
        Why::Early,
        Row {
            server_rules: Some("chain in { type filter hook input priority 0; tcp dport PORT drop; }"),
            ..greeted("the port is a black hole")
        },
    ),
    differs(Why::OwnPort, Row { dial: Dial::PrivilegedPort, peer: true, ..greeted("a source port below 1024") }),
    differs(
        Why::OwnPort,
        Row { ways: &[Way::Out], peer: true, ..greeted("the caller as a server outside of the mesh sees it") },
    ),
    differs(
        Why::OwnPort,
        Row {
            ways: &[Way::OwnService],
            peer: true,
            port: Some(OWN_SERVICE),
            alone: true,
            ..greeted("the caller of the pod's own Service")
        },
    ),
    differs(Why::Urgent, row("an urgent byte, asked for by MSG_OOB", read_urgent, send_urgent)),
    differs(
        Why::OwnNat,
        Row {
            listen: Listen::NextPort,
            ways: INTO_A_POD,
            server_rules: Some(REDIRECT_IN),
            ..greeted("a PREROUTING redirect of the called pod's own to another port")
        },
    ),
    differs(
        Why::OwnNat,
        Row {
            listen: Listen::NextPort,
            ways: INTO_A_POD,
            server_rules: Some(DNAT_IN),
            ..greeted("a PREROUTING DNAT of the called pod's own to another port of its address")
        },
    ),
    differs(
        Why::OwnNat,
        Row {
            listen: Listen::NextPort,
            ways: OUT_OF_A_POD,
            client_rules: Some(DNAT_OUT),
            ..greeted("an OUTPUT DNAT of the caller's own to another port")
        },
    ),
    differs(
        Why::OwnFilter,
        Row {
            pods: Pods::Guarded,
            ways: INTO_A_POD,
            alone: true,
            server_rules: Some(input_filter!("established, related", "")),
            ..greeted("an INPUT policy DROP that lets in the application's ports alone")
        },
    ),
    differs(
        Why::OwnFilter,
        Row {
            pods: Pods::GuardedCaller,
            ways: OUT_OF_A_POD,
            alone: true,
            client_rules: Some(input_filter!("established, related", "")),
            ..greeted("an INPUT policy DROP of the caller's that lets in `ct state established`")
        },
    ),
    differs(
        Why::OwnFilter,
        Row {
            ways: INTO_A_POD,
            server_rules: Some("chain in { type filter hook input priority 0; iifname \"eth0\" tcp dport PORT drop; }"),
            ..greeted("an INPUT rule that drops the port on `eth0`")
        },
    ),
    differs(Why::Signed, Row { listen: Listen::Signed, dial: Dial::Signed, ..greeted("TCP MD5 signatures") }),
    differs(
        Why::UserTimeout,
        Row {
            dial: Dial::UserTimeout,
            server_rules: Some(
                "chain in { type filter hook input priority 0; tcp dport PORT tcp flags & psh == psh drop; }",
            ),
            ..row("TCP_USER_TIMEOUT of one second, and a peer that hears nothing any more", say_nothing, send_and_read)
        },
    ),
];
