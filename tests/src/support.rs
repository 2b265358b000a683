//! What several promises need: a mesh that stands, and facts that are waited for. No promise hides here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Config, Lab, PodHandle, Process};
use serde_json::Value;

pub(crate) use crate::figure::figure;
pub(crate) use crate::watched::{Clear, Watched};

/// How long a change of configuration may take until a test calls it lost. Far above what is promised anywhere.
pub(crate) const CHANGE: Duration = Duration::from_secs(10);

/// A lab with the mesh on two nodes and the namespaces `shop` (in the mesh) and `outside` (not), its fabric under watch. Fails without
/// root: a test that needs root is never skipped.
pub(crate) fn mesh(name: &str) -> Result<Watched> {
    lab(Config::default().name(name).with_mesh())
}

/// As [`mesh`], from a given description.
pub(crate) fn lab(config: Config) -> Result<Watched> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: network namespaces, nf_tables and cgroups");
    let lab = Watched::up(config)?;
    if lab.has_mesh() {
        lab.namespace("shop", &[("culvert.io/mesh", "enabled")])?;
        lab.namespace("outside", &[])?;
    }
    Ok(lab)
}

/// `address:port`, IPv6 in brackets.
pub(crate) fn at(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// The word for an address's family.
pub(crate) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The report of a background client, which is told to end first.
pub(crate) fn report(client: &Process) -> Result<Value> {
    client.close_stdin();
    client.wait(CHANGE)?;
    let out = client.stdout();
    let last = out.lines().last().with_context(|| format!("{} printed nothing: {}", client.name(), client.log()))?;
    serde_json::from_str(last).with_context(|| format!("{}: {out}{}", client.name(), client.log()))
}

/// STRICT for a namespace. Waits until `stranger`, not in the mesh, is refused at `port` of the pod.
pub(crate) fn strict(lab: &Lab, namespace: &str, pod: &PodHandle, port: u16, stranger: &PodHandle) -> Result<()> {
    lab.apply(
        &format!("strict-{namespace}"),
        &format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{namespace: {namespace}, name: default}}\n\
             spec: {{mtls: {{mode: STRICT}}}}\n"
        ),
    )?;
    let to = at(pod.ips()[0], port);
    lab::wait::until_true("STRICT to take hold", CHANGE, || {
        stranger.run_client(&["connect", &to, "--send", "x", "--timeout", "1000"]).is_ok_and(|seen| seen["ok"] == 0)
    })
}
