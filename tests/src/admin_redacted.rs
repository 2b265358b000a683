//! No dump of a running mesh holds a secret: every verb of every admin socket in both its forms, every metrics endpoint and every log
//! is searched for the very keys, tokens and packet marks that are in use at that moment.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{Lab, Pod, PodHandle, wait};
use serde_json::Value;

use crate::marks::enrolment;
use crate::support::{CHANGE, at, figure, mesh};
use crate::talk;

const WORKER: [&[&str]; 9] = [
    &["config"],
    &["pods"],
    &["workloads"],
    &["connections"],
    &["certificates"],
    &["tunnels"],
    &["stats"],
    &["log-level"],
    &["log-level", "not a=filter"],
];

/// A secret, as the texts and bytes by which it would show.
struct Secret {
    what: String,
    shows: Vec<Vec<u8>>,
}

impl Secret {
    /// Bytes of a key: as they are, in hexadecimal, as a list of numbers, in base64 at each of the three places where it may begin.
    fn key(what: &str, bytes: &[u8]) -> Secret {
        let part = &bytes[..14];
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers: Vec<String> = part.iter().map(u8::to_string).collect();
        let mut shows = vec![part.to_vec(), hex.to_uppercase().into(), hex.into(), numbers.join(",").into()];
        for begin in 0..3 {
            let text = base64(&part[begin..begin + 12]);
            shows.push(text.replace('+', "-").replace('/', "_").into());
            shows.push(text.into());
        }
        Secret { what: what.to_owned(), shows }
    }

    fn text(what: &str, text: &str) -> Secret {
        Secret { what: what.to_owned(), shows: vec![text.into()] }
    }

    fn mark(of: &PodHandle) -> Result<Secret> {
        let mark = enrolment(of)?;
        let shows = [format!("{mark}"), format!("{mark:x}"), format!("{mark:X}")].map(String::into_bytes).into();
        Ok(Secret { what: format!("the mark of {}", of.key()), shows })
    }

    /// Whether the dump shows it, also when it is broken into lines or spaced out.
    fn is_in(&self, dump: &[u8]) -> bool {
        let dense: Vec<u8> = dump.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let dense = String::from_utf8_lossy(&dense).replace("\\n", "").into_bytes();
        [dump, &dense].iter().any(|dump| self.shows.iter().any(|show| dump.windows(show.len()).any(|at| at == show)))
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, of whole groups of three bytes.
fn base64(bytes: &[u8]) -> String {
    let digits = |group: &[u8]| {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize]))
    };
    bytes.chunks_exact(3).flat_map(digits).collect()
}

fn from_base64(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.bytes().filter_map(|byte| ALPHABET.iter().position(|digit| *digit == byte)).map(|at| at as u32).collect();
    let group = |group: &[u32]| {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

/// The private numbers of all P-256 keys in PKCS #8 in these bytes (RFC 5915, 3: version 1, then 32 octets).
fn private_numbers(bytes: &[u8]) -> Vec<&[u8]> {
    const BEFORE: &[u8] = &[0x02, 0x01, 0x01, 0x04, 0x20];
    let starts = bytes.windows(BEFORE.len()).enumerate().filter(|(_, at)| *at == BEFORE);
    starts.filter_map(|(at, _)| bytes.get(at + BEFORE.len()..at + BEFORE.len() + 32)).collect()
}

/// What the keeper of a node keeps unread for the next worker.
fn kept(lab: &Lab, node: usize) -> Result<Vec<u8>> {
    let pid = lab.mesh().keeper(node).id().pid;
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = fd?.path();
        if fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("culvert-certificates")) {
            return Ok(fs::read(path)?);
        }
    }
    anyhow::bail!("the keeper of node {node} keeps no certificates")
}

fn secrets(lab: &Lab, pods: &[&PodHandle]) -> Result<Vec<Secret>> {
    let own = lab.dir().join("control-plane");
    let pem = fs::read_to_string(own.join("root-key.pem"))?;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = from_base64(&body);
    let mut all = vec![Secret::text("a PEM header of a private key", "PRIVATEKEY-----")];
    let root = private_numbers(&der);
    ensure!(root.len() == 1, "the root's key is not read: {} numbers", root.len());
    all.push(Secret::key("the root's key", root[0]));
    for node in lab.nodes() {
        let kept = kept(lab, node.index())?;
        let keys = private_numbers(&kept);
        ensure!(!keys.is_empty(), "no key of node {} is known", node.index());
        all.extend(keys.into_iter().map(|key| Secret::key(&format!("a pod's key on {}", node.name()), key)));
    }
    let tokens: Value = serde_json::from_str(&fs::read_to_string(own.join("tokens.json"))?)?;
    for (token, node) in tokens.as_object().context("tokens by node")? {
        all.push(Secret::text(&format!("the token of {node}"), token));
    }
    for pod in pods {
        all.push(Secret::mark(pod)?);
    }
    // The search finds what it looks for: the files themselves.
    let find = |what: &str, dump: &[u8]| all.iter().any(|secret| secret.what.contains(what) && secret.is_in(dump));
    ensure!(find("PEM header", pem.as_bytes()) && find("root's key", pem.as_bytes()) && find("root's key", &der));
    ensure!(find("pod's key", &kept(lab, 1)?) && find("pod's key", base64(&kept(lab, 1)?).as_bytes()));
    ensure!(find("token", tokens.to_string().as_bytes()));
    Ok(all)
}

/// Every dump there is, with its name.
fn dumps(lab: &Lab, pods: &[&PodHandle]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    let ask = |all: &mut Vec<(String, Vec<u8>)>, node: usize, argv: &[&str]| -> Result<()> {
        for form in ["table", "json"] {
            let mut argv = argv.to_vec();
            argv.extend(["-o", form]);
            let answer = lab.node(node).exec(&argv)?;
            all.push((format!("node {node}: {argv:?}"), format!("{}{}", answer.stdout, answer.stderr).into_bytes()));
        }
        Ok(())
    };
    for node in [1, 2] {
        for verb in WORKER {
            ask(&mut all, node, &[&["node-proxy", "admin"], verb].concat())?;
        }
        ask(&mut all, node, &["pod-watcher", "admin", "pods"])?;
        for pod in pods {
            ask(&mut all, node, &["pod-watcher", "admin", "rules", &pod.key()])?;
        }
        all.push((format!("metrics of worker {node}"), lab.mesh().worker_metrics(node)?.into()));
        all.push((format!("metrics of pod-watcher {node}"), lab.mesh().watcher_metrics(node)?.into()));
    }
    all.push(("metrics of the control plane".into(), lab.mesh().control_plane_metrics()?.into()));
    for process in lab.mesh().processes() {
        all.push((format!("log of {}", process.name()), process.log().into()));
        all.push((format!("standard output of {}", process.name()), process.stdout().into()));
    }
    Ok(all)
}

#[test]
fn no_dump_metric_or_log_of_a_running_mesh_shows_a_key_a_token_or_a_mark() -> Result<()> {
    let lab = mesh("redacted")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    // As talkative as it gets, from before the first certificate of the pod that follows.
    for node in [1, 2] {
        lab.mesh().admin(node, &["log-level", "trace"])?;
    }
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(2))?;
    talk::everyone_known(&lab, &[&cart, &web])?;
    let open: Vec<_> = web
        .ips()
        .into_iter()
        .enumerate()
        .map(|(n, ip)| {
            let visit = cart.client(&format!("visit-{n}"), &["live", &at(ip, ECHO)])?;
            visit.wait_stdout("ready", CHANGE)?;
            Ok(visit)
        })
        .collect::<Result<_>>()?;
    let pods = [&cart, &web];
    wait::until_true("certificates to be kept for a successor", CHANGE, || {
        [1, 2].into_iter().all(|node| kept(&lab, node).is_ok_and(|kept| !private_numbers(&kept).is_empty()))
    })?;
    let (secrets, dumps) = (secrets(&lab, &pods)?, dumps(&lab, &pods)?);
    // Dumps of something, not of nothing.
    for (name, proof) in [
        ("node 1: [\"node-proxy\", \"admin\", \"connections\", \"-o\", \"table\"]", "shop/cart"),
        ("node 1: [\"node-proxy\", \"admin\", \"certificates\", \"-o\", \"json\"]", "\"serial\""),
        ("node 1: [\"node-proxy\", \"admin\", \"tunnels\", \"-o\", \"table\"]", ":15008"),
        ("node 2: [\"node-proxy\", \"admin\", \"log-level\", \"-o\", \"table\"]", "trace"),
        ("node 2: [\"pod-watcher\", \"admin\", \"rules\", \"shop/web\", \"-o\", \"table\"]", "$mark"),
        ("metrics of worker 2", "culvert_"),
        ("log of worker-1", "TRACE"),
    ] {
        let dump = dumps.iter().find(|(known, _)| known == name).with_context(|| format!("no dump {name}"))?;
        let text = String::from_utf8_lossy(&dump.1);
        ensure!(text.contains(proof), "{name} does not show {proof}:\n{}", text.chars().take(2000).collect::<String>());
    }
    let mut found = Vec::new();
    for (name, dump) in &dumps {
        let shown = secrets.iter().filter(|secret| secret.is_in(dump));
        found.extend(shown.map(|secret| format!("{} in {name}", secret.what)));
    }
    ensure!(found.is_empty(), "secrets are shown: {found:#?}");
    let bytes: usize = dumps.iter().map(|(_, dump)| dump.len()).sum();
    figure("dumps_without_a_secret", dumps.len(), "dumps", &format!("{bytes} bytes, {} secrets", secrets.len()));
    drop(open);
    Ok(())
}

#[test]
fn an_admin_verb_says_whom_to_look_at_and_ends_with_the_status_of_what_happened() -> Result<()> {
    let lab = mesh("admin-errors")?;
    let ask = |argv: &[&str]| lab.node(1).exec(argv);
    for (argv, code, words) in [
        (&["node-proxy", "admin", "pods"][..], 0, ""),
        (&["node-proxy", "admin", "log-level", "a=b=c"], 1, "cannot be parsed"),
        (&["pod-watcher", "admin", "rules", "shop/nobody"], 1, "no enrolled pod shop/nobody"),
        (&["node-proxy", "admin", "nonsense"], 2, "unrecognized subcommand"),
        (&["node-proxy", "admin", "pods", "--admin-socket", "/run/none.sock"], 3, "the node-proxy worker makes"),
        (&["pod-watcher", "admin", "pods", "--admin-socket", "/run/none.sock"], 3, "pod-watcher makes this socket"),
    ] {
        let answer = ask(argv)?;
        ensure!(answer.exit == lab::Exit::Code(code), "{argv:?}: {answer:?}");
        ensure!(answer.stderr.contains(words), "{argv:?}: {answer:?}");
    }
    ensure!(lab.mesh().admin(1, &["log-level"])?["log-level"] == "info");
    lab.mesh().admin(1, &["log-level", "debug"])?;
    ensure!(lab.mesh().admin(1, &["log-level"])?["log-level"] == "debug", "what was set is not what is read");
    Ok(())
}
