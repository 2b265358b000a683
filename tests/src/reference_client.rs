//! A client that was written from docs/protocol.md alone, in another language and with another gRPC, is served by the control plane: what
//! it is told, what it is told later, what it has to come back with, and certificates, over both families.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::mesh::CONTROL_PLANE_NAME;
use lab::{App, Lab, Pod, Service, plan};
use serde_json::{Value, json};

use crate::support::{self, family};

/// The whole of a client's life, in seconds: it gives up by itself before, for each answer.
const LONGEST: &str = "120";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// The client's process; a step is a line to it, and a line back.
struct Client {
    child: Child,
    steps: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(lab: &Lab, to: SocketAddr, token: &str) -> Result<Self> {
        let libraries = std::env::var("CULVERT_PYTHON").ok().filter(|path| Path::new(path).join("grpc").is_dir());
        let libraries = libraries.context(
            "CULVERT_PYTHON names no directory with grpcio: run `cargo xtask test lab`, which installs it and sets the variable",
        )?;
        let checkout = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = lab.dir().join("control-plane/root-cert.pem");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", LONGEST, "python3"]).arg(checkout.join("tests/python/reference_client.py"));
        command.args([checkout.join("docs/protocol.md"), checkout.join("mesh-api/proto")]);
        command.args([&to.to_string(), CONTROL_PLANE_NAME]).arg(root).arg(token);
        // Not into the checkout.
        command.env("PYTHONPATH", libraries).env("PYTHONDONTWRITEBYTECODE", "1").env("GRPC_VERBOSITY", "NONE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = lab.fabric().in_netns(|| command.spawn().context("start python3 (under timeout)"))?;
        let steps = child.stdin.take().context("its standard input")?;
        let answers = BufReader::new(child.stdout.take().context("its standard output")?);
        let mut client = Self { child, steps, answers };
        ensure!(client.next()?["connected"] == to.to_string().as_str(), "not connected to {to}");
        Ok(client)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the client ended, its error is above; last: {line:?}"))
    }

    fn step(&mut self, step: Value) -> Result<Value> {
        writeln!(self.steps, "{step}").with_context(|| format!("the client ended before {step}"))?;
        self.next().with_context(|| step.to_string())
    }

    fn found(&mut self, what: &str, name: &str) -> Result<Value> {
        Ok(self.step(json!({"do": what, "name": name}))?["found"].clone())
    }

    /// Takes answers until this has come.
    fn until(&mut self, kind: &str, part: &str, name: &str) -> Result<()> {
        loop {
            let answer = self.step(json!({"do": "answer"}))?;
            let names = answer[part].as_array().context("names")?;
            if answer["type"] == kind && names.iter().any(|one| one == name) {
                return Ok(());
            }
        }
    }

    fn certificate(&mut self, identity: &str) -> Result<Value> {
        self.step(json!({"do": "certificate", "name": identity, "seconds": 600}))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// The tokens of the lab's nodes, by node.
fn token(lab: &Lab, node: &str) -> Result<String> {
    let text = std::fs::read_to_string(lab.dir().join("control-plane/tokens.json"))?;
    let tokens: std::collections::BTreeMap<String, String> = serde_json::from_str(&text)?;
    let found = tokens.into_iter().find(|(_, of)| of == node).map(|(token, _)| token);
    found.with_context(|| format!("no token of {node}"))
}

fn policy(lab: &Lab, account: &str) -> Result<()> {
    lab.apply(
        "only",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: only}}\nspec:\n  \
             selector: {{matchLabels: {{app: web}}}}\n  rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}]}}]\n"
        ),
    )
}

#[test]
fn a_client_written_from_the_reference_alone_is_told_everything_and_gets_certificates() -> Result<()> {
    let lab = support::mesh("reference-client")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let web = lab.add_pod(Pod::new("shop", "web").label("app", "web").service_account("web").node(2))?;
    let plain = lab.add_pod(Pod::new("outside", "plain").app(App::None))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&plain));
    let vips = lab.service(Service::new("shop", "web").port(80, 7000))?;
    let token = token(&lab, "node-1")?;
    for ip in [plan::CONTROL_PLANE_V4.into(), plan::CONTROL_PLANE_V6.into()] {
        policy(&lab, "cart")?;
        let to = SocketAddr::new(ip, plan::CONTROL_PLANE_PORT);
        let mut client = Client::start(&lab, to, &token).context(family(ip))?;
        client.step(json!({"do": "subscribe"}))?;
        // Policies first.
        client.until("authorization", "sent", "shop/only")?;
        client.until("address", "sent", "shop/web.shop.svc.cluster.local")?;
        let told = |value: &Value| -> Vec<String> {
            let all = value["addresses"].as_array().or(value["vips"].as_array()).into_iter().flatten();
            let mut all: Vec<String> = all.filter_map(|one| one.as_str().map(str::to_owned)).collect();
            all.sort();
            all
        };
        let wanted = |ips: &[std::net::IpAddr]| {
            let mut all: Vec<String> = ips.iter().map(ToString::to_string).collect();
            all.sort();
            all
        };
        let found = client.found("workload", "shop/web")?;
        ensure!(told(&found) == wanted(&web.ips()), "{found}");
        ensure!(found["node"] == "node-2" && found["account"] == "web" && found["hbone"] == true, "{found}");
        ensure!(found["policies"] == json!(["shop/only"]), "{found}");
        ensure!(found["services"]["shop/web.shop.svc.cluster.local"] == json!([[80, 7000]]), "{found}");
        let found = client.found("workload", "outside/plain")?;
        ensure!(told(&found) == wanted(&plain.ips()) && found["hbone"] == false, "{found}");
        let found = client.found("workload", "shop/cart")?;
        ensure!(told(&found) == wanted(&cart.ips()) && found["policies"] == json!([]), "{found}");
        let found = client.found("service", "shop/web.shop.svc.cluster.local")?;
        ensure!(told(&found) == wanted(&vips), "{found}");
        let found = client.found("policy", "shop/only")?;
        ensure!(found == json!({"action": "ALLOW", "rules": 1, "accounts": ["shop/cart"]}), "{found}");

        // A change comes, and nothing else with it; one that is refused does not come again, what is newer does.
        policy(&lab, "guest")?;
        let answer = client.step(json!({"do": "answer", "refuse": "not to my taste"}))?;
        ensure!(answer == json!({"type": "authorization", "sent": ["shop/only"], "removed": []}), "{answer}");
        // Gone: addresses first, which list it no longer.
        lab.delete("only")?;
        let answers = [client.step(json!({"do": "answer"}))?, client.step(json!({"do": "answer"}))?];
        ensure!(answers[0]["type"] == "address" && answers[1]["removed"] == json!(["shop/only"]), "{answers:?}");
        ensure!(client.found("workload", "shop/web")?["policies"] == json!([]), "it lists what is gone");

        // Back with what it has: it is told that there is nothing new, of each type.
        client.step(json!({"do": "close"}))?;
        client.step(json!({"do": "subscribe", "held": true}))?;
        for kind in ["authorization", "address"] {
            let answer = client.step(json!({"do": "answer"}))?;
            ensure!(answer == json!({"type": kind, "sent": [], "removed": []}), "{answer}");
        }

        // Certificates: its own pods', and nobody else's.
        let root = client.step(json!({"do": "root"}))?["root"].clone();
        let cert = client.certificate(CART)?;
        let wanted = json!({"length": 2, "ours": true, "names": [CART], "seconds": 660, "root": root,
            "usages": ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]});
        ensure!(cert == wanted, "{cert}");
        let refused = json!({"refused": "UNAUTHENTICATED", "message": "not authorized"});
        for other in ["shop/sa/web", "outside/sa/default", "shop/sa/nobody"] {
            let answer = client.certificate(&format!("spiffe://cluster.local/ns/{other}"))?;
            ensure!(answer == refused, "{other}: {answer}");
        }
        let mut stranger = Client::start(&lab, to, "nobody's")?;
        ensure!(stranger.certificate(CART)? == refused, "a certificate without a token");
    }
    ensure!(lab.mesh().control_plane().is_alive(), "the control plane ended");
    Ok(())
}
