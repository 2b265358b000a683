//! The chains, one function each, in the order in which a packet meets them.

use mesh_model::ports::{INBOUND, OUTBOUND, TUNNEL};
use mesh_model::{Exclusions, Mark};

use super::excluded;
use super::parts::{
    TCP, UDP, Way, accept, aside, by_bridge, count, drop, each, from_about_ours, from_landing, from_others, from_port,
    from_self, in_set, jump, known, land, land_at_listener, mark, marked, not_on, not_syn, not_to_port, of_any_note,
    of_any_socket, of_family, of_socket, of_transparent_socket, on, opening, put, refuse, reset, steer, still_captured,
    syn, take, tcp, to_about_ours, to_landing, to_others, to_port, to_self, translated, translated_answer, transport,
    untracked, with_flow_label,
};
use super::{
    ANSWERS, BEGUN_IN, BEGUN_OUT, FROM_LO, FWMARK, Family, INNER, LOOPBACK, NOT_TCP, ON_LO, PROXY_IN, PROXY_OUT,
    RESETS, Rule, TIMEOUTS, TO_SELF, TOWARDS_US, rule,
};
use crate::capture::Stage;
use crate::capture::expr::{Expr, Meta};

/// Resets a second, and as many more at once, that go out of one pod in answer to packets that nobody owns (guess): what asks for
/// more gets silence.
const RESETS_PER_SECOND: u64 = 1_000;

/// Whether new connections are the proxy's.
pub(super) fn captures(stage: Stage) -> bool {
    matches!(stage, Stage::Redirect | Stage::Part)
}

/// Prerouting, before conntrack: packets of the proxy's own sockets are known by those, and conntrack need not know them. What was
/// translated on its way in is another matter: its packets belong to no socket of ours before they are translated.
pub(super) fn untrack(own: Mark) -> Vec<Rule> {
    vec![
        rule("loopback", [on(Meta::InputInterface, LOOPBACK), vec![Expr::Accept]]),
        // The kernel finds a listener on all addresses for foreign ones too.
        rule("to-others", [to_about_ours(), to_others(), accept()]),
        rule("of-proxy", [tcp(), of_socket(own), count(), mark(own.value()), vec![Expr::Untrack, Expr::Accept]]),
    ]
}

/// Prerouting, translation of destinations: a connection that begins.
pub(super) fn translate(stage: Stage, exclusions: &Exclusions) -> Vec<Rule> {
    if !captures(stage) {
        return Vec::new();
    }
    let mut rules = vec![
        rule("loopback-in", [on(Meta::InputInterface, LOOPBACK), accept()]),
        rule("forwarded-in", [to_others(), accept()]),
        rule("landing-in", [to_landing(), accept()]),
    ];
    rules.extend([OUTBOUND, INBOUND, TUNNEL].map(|port| {
        let name = format!("own-in-{port}");
        rule(name, [syn(), to_port(port), accept()])
    }));
    rules.extend(excluded::untranslated(exclusions));
    // Else whoever knows the numbers of a flow from before ends it by a SYN: its packets would be translated from then on.
    rules.extend(each("reused-in", |family| [syn(), known(family, Way::In), in_set(family.before()), accept()]));
    let timeouts = || vec![Expr::Timeouts(TIMEOUTS.to_owned())];
    // A container in the pod, or a machine. With br_netfilter, which Kubernetes asks for, such packets meet these chains while they are in
    // the bridge, and behind it nobody knows any more what `tproxy` chose for them (`ip_rcv_core` orphans them); translations stay.
    rules.push(rule("capture-bridged", [by_bridge(), syn(), timeouts(), land_at_listener()]));
    rules.push(rule("capture-in", [syn(), timeouts(), land()]));
    rules
}

/// Prerouting, behind the translation and before the choice of a route: whose packet is this?
pub(super) fn arrive(stage: Stage, own: Mark, exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules = vec![
        rule("on-lo", [on(Meta::InputInterface, LOOPBACK), aside(FROM_LO)]),
        rule("input-udp", [transport(true, UDP), accept()]),
        rule("input-other", [transport(false, TCP), accept()]),
    ];
    if captures(stage) {
        rules.push(rule("of-proxy-in", [marked(own.value()), aside(PROXY_IN)]));
    }
    rules.push(rule("input-forwarded", [to_others(), accept()]));
    match stage {
        Stage::Deny => rules.extend([
            // Answers to the proxy's own connections; nobody reaches its listeners yet.
            rule("input-proxy", [marked(own.value()), not_syn(), pass_on()]),
            rule("deny-in", [refuse()]),
        ]),
        Stage::Learn => {
            rules.extend(landed());
            rules.extend(each("learn-in", |family| [syn(), known(family, Way::In), put(family.before())]));
            rules.push(rule("input-proxy", [marked(own.value()), pass_on()]));
        }
        Stage::Drain => {
            rules.extend(landed());
            rules.push(rule("input-proxy", [marked(own.value()), pass_on()]));
        }
        Stage::Redirect | Stage::Part => {
            rules.extend(landed());
            rules.extend(excluded::inbound(exclusions));
            rules.extend(each("before-in", |family| {
                [not_syn(), known(family, Way::In), in_set(family.before()), accept()]
            }));
            rules.extend(each("excluded-in", |family| {
                [not_syn(), known(family, Way::In), in_set(family.excluded()), accept()]
            }));
            rules.push(rule("inner", [aside(INNER)]));
            rules.extend(each("translated-before-in", |family| {
                [not_syn(), translated_answer(family), in_set(family.before()), accept()]
            }));
            rules.extend(each("translated-excluded-in", |family| {
                [not_syn(), translated_answer(family), in_set(family.excluded()), accept()]
            }));
            rules.extend([
                rule("uncaptured-in", [syn(), not_to_port(TUNNEL), refuse()]),
                // A connection or a listener that is not the proxy's: the last packet of a handshake by SYN cookie, an injection.
                rule("foreign-in", [of_any_socket(), refuse()]),
                // The proxy's requests, TIME_WAIT and FIN_WAIT2: they carry no mark, and all its sockets are transparent.
                rule("ending-in", [of_transparent_socket(), accept()]),
                rule("nobody-in", [refuse()]),
            ]);
        }
    }
    rules
}

/// What arrives by `lo`: captured, or from the proxy to an application of this pod. Nothing returns from here.
pub(super) fn from_lo(stage: Stage) -> Vec<Rule> {
    let mut rules = Vec::new();
    if matches!(stage, Stage::Learn | Stage::Drain) {
        // A stream of a tunnel from before that reaches the application only now: its answers are captured as those of the others.
        rules.extend(each("captured-anew", |family| {
            [marked(ON_LO), syn(), known(family, Way::In), put(family.captured())]
        }));
    }
    if captures(stage) {
        rules.push(rule("begins-in", [marked(ON_LO), syn(), aside(BEGUN_IN)]));
    }
    rules.extend([
        // The proxy's, towards an application of this pod. From here on it has the mark of what is captured: what the kernel answers
        // by itself (a reset where nobody listens) may take over a packet's mark, and has to find its way back.
        rule("from-proxy", [marked(ON_LO), count(), mark(FWMARK), vec![Expr::Accept]]),
        // The kernel looks a link-local destination up by the interface that its socket is bound to, which `tproxy` does not: it would give
        // the second packet to the listener, which resets.
        rule("captured-on-link", [excluded::on_link(), marked(FWMARK), not_syn(), accept()]),
        // To whoever has it already, else to the listener: every packet, so that one whose socket is gone is answered by a reset.
        rule("captured-out", [marked(FWMARK), tcp(), steer(OUTBOUND)]),
        rule("stranded-out", [marked(FWMARK), tcp(), refuse()]),
        rule("input-loopback", [accept()]),
    ]);
    rules
}

/// What the proxy begins with an application of this pod.
pub(super) fn begun_in(exclusions: &Exclusions) -> Vec<Rule> {
    // The same numbers were a flow from before, of which nobody else may be left: its answers are no longer that flow's.
    let mut rules: Vec<Rule> = each("begun-in", |family| [known(family, Way::In), take(family.before())]).into();
    rules.extend(excluded::of_proxy(exclusions));
    rules
}

/// What arrives at the proxy's own sockets.
pub(super) fn proxy_in() -> Vec<Rule> {
    vec![rule("inner-of-proxy", [aside(INNER)]), rule("input-proxy", [pass_on()])]
}

/// The listeners that only what is captured may reach.
pub(super) fn inner() -> Vec<Rule> {
    [OUTBOUND, INBOUND]
        .map(|port| {
            let name = format!("inner-{port}");
            rule(name, [tcp(), to_port(port), refuse()])
        })
        .into()
}

/// What [`translate`] has translated.
fn landed() -> [Rule; 2] {
    [
        rule("input-captured", [to_landing(), steer(INBOUND)]),
        rule("input-bridged", [by_bridge(), translated(), tcp(), to_port(INBOUND), accept()]),
    ]
}

/// Output, before conntrack and with another choice of a route behind it: what leaves a socket.
pub(super) fn leave(stage: Stage, own: Mark, exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules = vec![
        rule("not-tcp", [transport(false, TCP), aside(NOT_TCP)]),
        rule("of-proxy-out", [marked(own.value()), aside(PROXY_OUT)]),
        // The interface says it neither way: whoever sets our public mark is led to `lo` wherever he calls, and a raw socket is routed by
        // whom it sends to, whatever its header says.
        rule("to-self", [to_self(), aside(TO_SELF)]),
    ];
    match stage {
        Stage::Deny => {
            rules.push(rule("resets-out", [reset(), jump(RESETS)]));
            rules.push(rule("deny-out", [refuse()]));
        }
        Stage::Learn => {
            rules.extend(each("still-captured", still_captured));
            rules.extend(each("learn-out", |family| [syn(), known(family, Way::Out), put(family.before())]));
        }
        Stage::Drain => rules.extend(each("still-captured", still_captured)),
        Stage::Redirect | Stage::Part => {
            rules.extend(excluded::still_captured_by_proxy(exclusions));
            rules.push(rule("begins-out", [syn(), aside(BEGUN_OUT)]));
            rules.extend(each("before-out", |family| [known(family, Way::Out), in_set(family.before()), accept()]));
            rules.extend(each("excluded-out", |family| [known(family, Way::Out), in_set(family.excluded()), accept()]));
            rules.push(rule("resets-out", [reset(), jump(RESETS)]));
            if stage == Stage::Part {
                rules.extend(each("part-out", |family| [opening(), known(family, Way::Out), put(family.captured())]));
            }
            rules.push(rule("capture-out", [count(), mark(FWMARK), untracked()]));
        }
    }
    rules
}

/// What leaves and is not ours to judge. Nothing returns from here.
pub(super) fn not_tcp() -> Vec<Rule> {
    vec![
        rule("output-loopback", [on(Meta::OutputInterface, LOOPBACK), accept()]),
        rule("output-udp", [transport(true, UDP), accept()]),
        rule("output-other", [accept()]),
    ]
}

/// What leaves the proxy's own sockets. Nothing returns from here.
pub(super) fn proxy_out() -> Vec<Rule> {
    let to_lo = on(Meta::OutputInterface, LOOPBACK);
    vec![
        // An address of the pod that nobody told of would lead the proxy to itself, for ever.
        rule("proxy-to-itself", [to_lo, syn(), jump(TOWARDS_US)]),
        rule("proxy-answers", [from_about_ours(), aside(ANSWERS)]),
        rule("proxy-out", [count(), untracked()]),
    ]
}

/// Where the proxy's answers have to be translated back.
pub(super) fn answers() -> Vec<Rule> {
    vec![
        rule("proxy-landed", [from_landing(), accept()]),
        rule("proxy-bridged", [tcp(), from_port(INBOUND), accept()]),
        // Of connections that rules of the release before translated to the listener, which had its mark already.
        rule("proxy-former", [tcp(), from_port(OUTBOUND), accept()]),
    ]
}

/// What others send to an address of the pod itself. Nothing returns from here.
pub(super) fn to_self_out() -> Vec<Rule> {
    vec![
        // Who sets our public mark on the way to the pod itself is not captured by that either.
        rule("local-marked", [marked(FWMARK), from_self(), count(), mark(0), vec![Expr::Accept]]),
        rule("local-out", [from_self(), accept()]),
        // A reset of ours in the name of the far end. A process that may bear foreign addresses shall not pass for a client.
        rule("local-reset", [reset(), count(), mark(0), vec![Expr::Accept]]),
        rule("local-spoofed", [refuse()]),
    ]
}

/// What an application opens: with these numbers it has no older connection. (An excluded one is opened from outside too.)
pub(super) fn begun_out(exclusions: &Exclusions) -> Vec<Rule> {
    let mut rules: Vec<Rule> = each("begun-out", |family| [known(family, Way::Out), take(family.before())]).into();
    rules.extend(each("anew-out", |family| [known(family, Way::Out), take(family.excluded())]));
    rules.extend(excluded::outbound(exclusions));
    rules
}

/// Postrouting, before the translation of sources: what is about to leave the pod, once more.
pub(super) fn part(stage: Stage, own: Mark) -> Vec<Rule> {
    let mut rules = vec![
        // Most of what comes here. It is steered, or refused, when it arrives there.
        rule("captured-to-lo", [on(Meta::OutputInterface, LOOPBACK), marked(FWMARK), vec![Expr::Accept]]),
        rule("leave-other", [transport(false, TCP), accept()]),
        // What comes to `lo` is known by a mark that is no secret: whoever may look at packets there reads it, and it opens nothing.
        rule(
            "proxy-to-lo",
            [on(Meta::OutputInterface, LOOPBACK), marked(own.value()), count(), mark(ON_LO), vec![Expr::Accept]],
        ),
        rule("leave-loopback", [on(Meta::OutputInterface, LOOPBACK), accept()]),
        rule("leave-forwarded", [not_on(Meta::InputInterface, 0), accept()]),
        rule("leave-proxy", [marked(own.value()), from_self(), pass_on()]),
        // Sockets towards the application bear foreign addresses, and stay in the pod.
        rule("leave-spoofed", [marked(own.value()), drop()]),
        // Captured, but its socket is bound to an interface that our routing table does not know yet.
        rule("leave-captured", [marked(FWMARK), drop()]),
    ];
    if captures(stage) {
        rules.extend(each("leave-before", |family| [known(family, Way::Out), in_set(family.before()), accept()]));
        rules.extend(each("leave-excluded", |family| [known(family, Way::Out), in_set(family.excluded()), accept()]));
        rules.extend([
            // Forwarded inside of a bridge, with br_netfilter: the kernel no longer says by which port it came. What a process of the pod
            // sends so has been captured.
            rule("leave-bridged", [from_others(), to_others(), accept()]),
            // Of a flow that passes, by rules of the pod's own. (Also what the pod sends to itself and has translated away from there: its
            // answers find no owner.)
            rule("leave-translated", [translated(), accept()]),
            rule("leave-nobody", [drop()]),
        ]);
    }
    rules
}

/// Where packets that nobody owns are refused.
pub(super) fn refusals() -> Vec<Rule> {
    let limit = Expr::Limit { rate: RESETS_PER_SECOND, burst: u32::try_from(RESETS_PER_SECOND).unwrap_or(u32::MAX) };
    vec![rule("refused", [vec![limit], count(), vec![Expr::Reset]]), rule("silenced", [drop()])]
}

/// A reset on its way out. One that belongs to no socket is our own, of [`refusals`]; all others go the way of their socket. What the
/// kernel itself answers over IPv6 belongs to no socket either, but has a flow label (`auto_flowlabels`, on unless somebody switches it
/// off), and ours has none (`nf_reject_ip6hdr_put`).
pub(super) fn resets(own: Mark) -> Vec<Rule> {
    let back = || vec![Expr::counter(), Expr::Return];
    vec![
        rule("reset-of-socket", [of_any_socket(), back()]),
        rule("reset-of-note", [of_any_note(), back()]),
        rule("reset-of-kernel", [of_family(Family::V6), with_flow_label(), back()]),
        rule("reset-of-nobody", [count(), mark(own.value()), vec![Expr::Untrack, Expr::Accept]]),
    ]
}

/// Beside the rules of the release before.
pub(super) fn learn_in() -> Vec<Rule> {
    let outside = || not_on(Meta::InputInterface, LOOPBACK);
    each("learn-in", |family| [outside(), syn(), known(family, Way::In), put(family.before())]).into()
}

/// The same.
pub(super) fn learn_out(own: Mark) -> Vec<Rule> {
    let mut rules =
        vec![rule("learn-not", [marked(own.value()), accept()]), rule("learn-local", [to_self(), accept()])];
    rules.extend(each("learn-out", |family| [syn(), known(family, Way::Out), put(family.before())]));
    rules
}

/// Where the proxy would reach itself.
pub(super) fn towards_us() -> Vec<Rule> {
    [OUTBOUND, INBOUND, TUNNEL]
        .map(|port| {
            let name = format!("itself-{port}");
            rule(name, [to_port(port), refuse()])
        })
        .into()
}

/// Lets a packet of the proxy's go without the mark that it is known by: a process that may open raw sockets reads the marks of packets
/// (SO_RCVMARK; a packet socket), and may set the one that it has read.
fn pass_on() -> Vec<Expr> {
    [count(), mark(0), vec![Expr::Accept]].concat()
}
