//! Talking from pods: attempts made with plain sockets in a pod's own network, and what became of each. Nothing here knows of the
//! mesh but the last part, which reads its access logs and waits for its configuration.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, PodHandle, wait};
use serde_json::Value;

use crate::support::CHANGE;

/// How long an attempt may go without an answer. An answer takes milliseconds; the slowest promised one (a destination that nobody
/// knows) a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Met {
    /// The same bytes came back.
    Answered,
    /// Reset, end of data, or refused by the kernel.
    Refused,
    /// Nothing came at all.
    Silence,
    /// A router on the way knows no way further.
    Unreachable,
}

/// Connects from a pod; reads and writes of the stream have a deadline.
pub(crate) fn connect(from: &PodHandle, to: SocketAddr) -> Result<io::Result<TcpStream>> {
    connect_within(from, to, PATIENCE)
}

fn connect_within(from: &PodHandle, to: SocketAddr, deadline: Duration) -> Result<io::Result<TcpStream>> {
    let stream = from.in_netns(|| Ok(TcpStream::connect_timeout(&to, deadline)))?;
    if let Ok(stream) = &stream {
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        stream.set_nodelay(true)?;
    }
    Ok(stream)
}

/// Says something on an open stream to an echo server and waits for it to come back.
pub(crate) fn say(mut stream: &TcpStream) -> io::Result<()> {
    let mut answer = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut answer)?;
    if &answer == b"hello" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One attempt at an echo server.
pub(crate) fn attempt(from: &PodHandle, to: SocketAddr) -> Result<Met> {
    attempt_within(from, to, PATIENCE)
}

/// The same with a patience of its own.
pub(crate) fn attempt_within(from: &PodHandle, to: SocketAddr, deadline: Duration) -> Result<Met> {
    let talked = connect_within(from, to, deadline)?.and_then(|stream| say(&stream));
    use io::ErrorKind as Kind;
    match talked.map_err(|error| error.kind()) {
        Ok(()) => Ok(Met::Answered),
        Err(Kind::TimedOut | Kind::WouldBlock) => Ok(Met::Silence),
        Err(Kind::HostUnreachable | Kind::NetworkUnreachable) => Ok(Met::Unreachable),
        Err(Kind::ConnectionRefused | Kind::ConnectionReset | Kind::BrokenPipe | Kind::UnexpectedEof) => {
            Ok(Met::Refused)
        }
        Err(kind) => anyhow::bail!("{} to {to}: {kind}", from.key()),
    }
}

/// Attempts until one is met as wanted: for what a change of configuration brings about.
pub(crate) fn until(from: &PodHandle, to: SocketAddr, wanted: Met) -> Result<()> {
    wait::until_true(&format!("{} to {to}: {wanted:?}", from.key()), CHANGE, || {
        attempt(from, to).is_ok_and(|met| met == wanted)
    })
}

/// The pod's addresses with a port: one per family of the lab.
pub(crate) fn at(pod: &PodHandle, port: u16) -> Vec<SocketAddr> {
    pod.ips().into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

/// The pod's address of the other address's family.
pub(crate) fn own_address(pod: &PodHandle, like: IpAddr) -> Result<IpAddr> {
    let own = pod.ips().into_iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
    own.with_context(|| format!("{} has no address of the family of {like}", pod.key()))
}

/// What a client of ours reported, which must be a success.
pub(crate) fn client(from: &PodHandle, args: &[&str]) -> Result<Value> {
    let report = from.run_client(args)?;
    ensure!(report["ok"].as_u64().is_some_and(|ok| ok > 0), "{} {args:?}: {report}", from.key());
    Ok(report)
}

/// A server outside of every range of the cluster: "the internet".
pub(crate) fn world(lab: &Lab, port: u16) -> Result<Vec<SocketAddr>> {
    let server = lab::Program::new("world", &["culvert-lab", "app", "--name", "world"]).args([format!("echo:{port}")]);
    lab.fabric().spawn(server)?.wait_stdout("ready", CHANGE)?;
    let ips = lab.families().filter([lab::plan::OUTSIDE_V4.into(), lab::plan::OUTSIDE_V6.into()]);
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Text of a field of an access log line, empty when absent.
pub(crate) fn field<'l>(line: &'l Value, key: &str) -> &'l str {
    line[key].as_str().unwrap_or_default()
}

/// Whether a line is of the called end: of a plain connection, one in a tunnel, or the far half of a same-node pair.
pub(crate) fn is_inbound(line: &Value) -> bool {
    field(line, "direction").starts_with("inbound")
}

/// Every line of every node's access log.
pub(crate) fn lines(lab: &Lab) -> Vec<Value> {
    lab.nodes().iter().flat_map(|node| lab.mesh().access_log(node.index())).collect()
}

/// Both ends' lines of the connection from this client address to this destination: the caller's, then the called one's.
pub(crate) fn both_ends(lab: &Lab, client: SocketAddr, destination: SocketAddr) -> Result<(Value, Value)> {
    let (client, destination) = (client.to_string(), destination.to_string());
    let what = format!("both ends' access log lines of {client} to {destination}");
    let found = wait::until(&what, CHANGE, || {
        let all: Vec<Value> = lines(lab).into_iter().filter(|line| field(line, "client") == client).collect();
        let near = all
            .iter()
            .find(|line| field(line, "direction") == "outbound" && line["destination"] == destination.as_str())?;
        let far = all.iter().find(|line| is_inbound(line) && line["id"] == near["id"])?;
        Some((near.clone(), far.clone()))
    });
    found.with_context(|| format!("the logs hold {:#?}", lines(lab)))
}

/// Waits until a node's worker has configuration of which `fact` holds: given `admin config` and `admin workloads`.
pub(crate) fn knows(lab: &Lab, node: usize, what: &str, fact: impl Fn(&Value, &Value) -> bool) -> Result<()> {
    let mut last = (Value::Null, Value::Null);
    wait::until_true(&format!("the worker of node {node} to know {what}"), CHANGE, || {
        let asked = |verb: &str| lab.mesh().admin(node, &[verb]).unwrap_or_default();
        last = (asked("config"), asked("workloads"));
        fact(&last.0, &last.1)
    })
    .with_context(|| format!("it knows {:#}\n{:#}", last.0["policies"], last.1))
}

/// Waits until every node knows a policy of this name, and whoever it selects lists it.
pub(crate) fn policy_arrived(lab: &Lab, key: &str) -> Result<()> {
    for node in lab.nodes() {
        knows(lab, node.index(), key, |config, workloads| {
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let policy = list(&config["policies"]).into_iter().find(|policy| policy["key"] == key);
            policy.is_some_and(|policy| {
                policy["scope"] != "Selector"
                    || list(workloads).iter().any(|w| list(&w["policies"]).iter().any(|k| k == key))
            })
        })?;
    }
    Ok(())
}

/// Waits until every node knows these workloads by address: what is asserted next is about policy, not about news that travels.
pub(crate) fn everyone_known(lab: &Lab, pods: &[&PodHandle]) -> Result<()> {
    for node in lab.nodes() {
        knows(lab, node.index(), "every pod of the test", |_, workloads| {
            let known = |pod: &PodHandle| {
                let ips = serde_json::json!(pod.ips());
                workloads.as_array().is_some_and(|all| {
                    all.iter().any(|w| {
                        ips.as_array().is_some_and(|ips| {
                            ips.iter().all(|ip| w["addresses"].as_array().is_some_and(|a| a.contains(ip)))
                        })
                    })
                })
            };
            pods.iter().all(|pod| known(pod))
        })?;
    }
    Ok(())
}
