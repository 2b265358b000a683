//! `culvert check`: what must hold before an install, and what must hold of a mesh. Each area judges what was read, purely, in a file
//! of its own; here it is read. It changes nothing.

mod access;
mod chain;
mod clock;
mod definitions;
mod nodes;
mod policies;
mod running;
mod server;

use std::path::PathBuf;

use mesh_api::manifests::Node;
use serde_json::{Value, json};

use crate::args::Output;
use crate::ask;
use crate::failure::Failure;
use crate::install;
use crate::mesh::{Mesh, typed};
use crate::names::Component;
use crate::print::{self, Answer};

/// How serious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Fine,
    /// It works, or may; somebody should look.
    Warning,
    /// It does not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How serious.
    pub level: Level,
    /// What was looked at: an object, or a property of one.
    pub object: String,
    /// What was found.
    pub says: String,
    /// What to do; empty when nothing is to be done.
    pub next: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(object: impl Into<String>, says: impl Into<String>) -> Self {
        Self { level: Level::Fine, object: object.into(), says: says.into(), next: String::new() }
    }

    /// Somebody should look.
    pub fn warning(object: impl Into<String>, says: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Warning, object: object.into(), says: says.into(), next: next.into() }
    }

    /// It does not work.
    pub fn failed(object: impl Into<String>, says: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Failed, object: object.into(), says: says.into(), next: next.into() }
    }

    fn of(failure: &Failure, object: &str) -> Self {
        Self::failed(object, failure.what(), failure.next())
    }
}

/// Looks at everything and prints. Fails itself only when the API server does not answer at all.
pub async fn run(mesh: &Mesh, output: Output, pre: bool, manifests: &[PathBuf]) -> Result<Answer, Failure> {
    let before = print::now();
    let (version, date) =
        mesh.api.dated("/version").await.map_err(|error| Failure::of("read the version of the API server", &error))?;
    let mut findings = vec![server::version(&version), clock::of_this_machine(date.as_deref(), before, print::now())];
    // From here on a question that is refused is a finding: the others are still worth asking.
    let mut keep = |object: &str, found: Result<Vec<Finding>, Failure>| match found {
        Ok(found) => findings.extend(found),
        Err(failure) => findings.push(Finding::of(&failure, object)),
    };
    keep("API groups", groups(mesh).await);
    keep("nodes", of_nodes(mesh, date.as_deref()).await);
    keep("definitions", definitions(mesh).await);
    keep("permissions", access::ask(mesh, pre, manifests).await);
    if pre {
        keep("CNI and kernel modules", Ok(vec![chain::unseen()]));
    } else {
        keep("mesh", of_mesh(mesh).await);
        keep("policies", of_policies(mesh).await);
    }
    Ok(answer(output, &findings))
}

async fn groups(mesh: &Mesh) -> Result<Vec<Finding>, Failure> {
    Ok(server::groups(&mesh.get("/apis").await?.unwrap_or_default()))
}

async fn of_nodes(mesh: &Mesh, date: Option<&str>) -> Result<Vec<Finding>, Failure> {
    let nodes: Vec<Node> = typed(mesh.list("/api/v1/nodes", "").await?);
    let mut findings: Vec<Finding> = nodes.iter().flat_map(nodes::judge).collect();
    let leases = mesh.list("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", "").await?;
    // The list was answered later than the version; its own time counts.
    let now = match mesh.api.dated("/version").await {
        Ok((_, Some(date))) => Some(date),
        _ => date.map(str::to_owned),
    };
    findings.extend(clock::of_nodes(&nodes, &leases, now.as_deref()));
    Ok(findings)
}

async fn definitions(mesh: &Mesh) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    for name in definitions::NAMES {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        findings.push(definitions::judge(name, mesh.get(&path).await?.as_ref()));
    }
    Ok(findings)
}

async fn of_policies(mesh: &Mesh) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    for (kind, plural) in
        [("AuthorizationPolicy", "authorizationpolicies"), ("PeerAuthentication", "peerauthentications")]
    {
        let path = format!("/apis/security.istio.io/v1/{plural}");
        // Without the definition there are none, and that is said elsewhere.
        if mesh.get(&format!("{path}?limit=1")).await?.is_some() {
            findings.extend(policies::judge(kind, &mesh.list(&path, "").await?));
        }
    }
    Ok(findings)
}

async fn of_mesh(mesh: &Mesh) -> Result<Vec<Finding>, Failure> {
    let objects = mesh.components().await?;
    if objects.is_empty() {
        return Err(crate::status::nothing());
    }
    let own = mesh.own_pods().await?;
    let mut findings = running::components(&crate::status::components(&objects, &own));
    let outside = crate::mesh::outside(objects.get(&Component::PodWatcher));
    findings.extend(running::pods(&mesh.pods(None, "").await?, &mesh.namespaces().await?, &outside));
    let warnings = mesh.list("/apis/events.k8s.io/v1/events", "fieldSelector=type%3DWarning").await?;
    findings.extend(running::events(&warnings, print::now()));
    // Together: those that do not answer must not use up the others' time.
    let chains = ask::chains(mesh, ask::serving(&own, Component::PodWatcher));
    let proxies = ask::proxies(mesh, ask::serving(&own, Component::NodeProxy), true);
    let (chains, (proxies, silent)) = tokio::join!(chains, proxies);
    for (node, answer) in &chains {
        findings.extend(chain::judge(node, answer));
    }
    for (node, proxy) in &proxies {
        findings.extend(running::proxy(node, proxy, print::now()));
    }
    findings.extend(silent.into_iter().map(|one| Finding::failed("proxy", one, "see culvert status --brief")));
    Ok(findings)
}

fn answer(output: Output, findings: &[Finding]) -> Answer {
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (failed, warnings) = (count(Level::Failed), count(Level::Warning));
    let word = |level| match level {
        Level::Fine => "ok",
        Level::Warning => "warning",
        Level::Failed => "failed",
    };
    let text = match output {
        Output::Json => {
            let rows = findings.iter().map(
                |one| json!({"result": word(one.level), "object": one.object, "says": one.says, "next": one.next}),
            );
            print::json(&json!({ "failed": failed, "warnings": warnings, "findings": rows.collect::<Vec<Value>>() }))
        }
        Output::Table => {
            let mut text = String::new();
            for one in findings {
                // What others wrote (events, kubelet) must not steer a terminal.
                let line = format!("{:8}{}: {}", word(one.level), one.object, one.says).replace(char::is_control, " ");
                text.push_str(&format!("{line}\n"));
                if !one.next.is_empty() {
                    text.push_str(&format!("        next: {}\n", one.next.replace(char::is_control, " ")));
                }
            }
            format!("{text}\n{failed} failed, {warnings} warnings, {} as they should be\n", count(Level::Fine))
        }
    };
    Answer { text, well: failed == 0, silent: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_makes_the_whole_fail_and_each_says_what_to_do() {
        let fine = Finding::fine("a", "is well");
        let warning = Finding::warning("b", "is odd", "look");
        assert!(answer(Output::Table, &[fine.clone(), warning.clone()]).well);
        let failed = Finding::failed("c", "is\u{1b}[2J broken", "mend it");
        let answer = answer(Output::Table, &[fine, warning, failed]);
        assert!(!answer.well);
        let lines: Vec<&str> = answer.text.lines().collect();
        assert_eq!(lines[0], "ok      a: is well");
        assert_eq!(lines[3..5], ["failed  c: is [2J broken", "        next: mend it"]);
        assert_eq!(lines[6], "1 failed, 1 warnings, 1 as they should be");
    }
}
