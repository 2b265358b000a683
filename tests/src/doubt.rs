//! What is not understood, or not there yet, refuses: a policy nobody can parse, and one that a workload lists and that has not come.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle, Signal, wait};
use mesh_api::xds::saved::{Saved, SavedResource};
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use serde_json::Value;

use crate::support::{self, CHANGE};
use crate::talk::{self, Met, at, field};

/// (kind, spec, the policy's name in logs, whether the pod beside it in the namespace is refused too)
const BROKEN: [(&str, &str, &str, bool); 5] = [
    (
        "AuthorizationPolicy",
        "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {ipBlocks: [not-an-address]}}]}]}",
        "shop/broken",
        false,
    ),
    // A field of a later version: nobody knows whom it would refuse.
    (
        "AuthorizationPolicy",
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {moonPhases: [full]}}]}]}",
        "shop/broken",
        false,
    ),
    ("AuthorizationPolicy", "{selector: {matchLabels: {app: web}}, action: PERHAPS}", "shop/broken", false),
    ("AuthorizationPolicy", "{action: ALLOW, rules: [{to: [{operation: {ports: ['seventy']}}]}]}", "shop/broken", true),
    (
        "PeerAuthentication",
        "{selector: {matchLabels: {app: web}}, mtls: {mode: SOMETIMES}}",
        "shop/converted_peer_authentication_broken",
        false,
    ),
];

#[test]
fn a_policy_that_cannot_be_parsed_refuses_what_it_selects_and_nothing_else() -> Result<()> {
    let lab = support::mesh("doubt-parse")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").app(App::None))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&stranger));
    let server = |name: &str, app: &str, node| {
        lab.add_pod(Pod::new("shop", name).label("app", app).service_account(app).node(node))
    };
    let (near, far, beside) = (server("near", "web", 1)?, server("far", "web", 2)?, server("beside", "beside", 2)?);
    talk::everyone_known(&lab, &[&cart, &near, &far, &beside])?;
    for (kind, spec, key, wide) in BROKEN {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{namespace: shop, name: broken}}\nspec: {spec}\n"
        );
        lab.apply("broken", &text)?;
        talk::policy_arrived(&lab, key).with_context(|| text.clone())?;
        for (pod, selected) in [(&near, true), (&far, true), (&beside, wide)] {
            let wanted = if selected { Met::Refused } else { Met::Answered };
            meets(&lab, &[&cart, &stranger], pod, wanted, key).with_context(|| text.clone())?;
        }
        lab.delete("broken")?;
        for to in [&near, &far, &beside].into_iter().flat_map(|pod| at(pod, ECHO)) {
            talk::until(&cart, to, Met::Answered).with_context(|| format!("once it is gone: {text}"))?;
        }
    }
    Ok(())
}

/// What callers meet at a pod; a refusal names the policy in the log of the pod's node and never reaches the app.
fn meets(lab: &Lab, callers: &[&PodHandle], pod: &PodHandle, wanted: Met, key: &str) -> Result<()> {
    for to in at(pod, ECHO) {
        // Lines are written in batches: one of an earlier attempt may come late, and tells by its time that it is none of these.
        let (before, since) = (pod.stats(), now()?);
        for caller in callers {
            let met = talk::attempt(caller, to)?;
            ensure!(met == wanted, "{} at {to}: {met:?}, not {wanted:?}", caller.key());
        }
        if wanted == Met::Refused {
            ensure!(pod.stats() == before, "the app at {to} saw a refused connection");
            wait::until_true(&format!("{} refusals at {to} naming {key}", callers.len()), CHANGE, || {
                lines_naming(lab, pod.node(), &to.to_string(), key, &since) == callers.len()
            })
            .with_context(|| format!("{:#?}", talk::lines(lab)))?;
        }
    }
    Ok(())
}

/// As lines of the access log tell the time; they compare as text.
fn now() -> Result<String> {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"]).output().context("date")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn lines_naming(lab: &Lab, node: usize, destination: &str, key: &str, since: &str) -> usize {
    let named = |line: &&Value| {
        line["time"].as_str().is_some_and(|time| time >= since)
            && line["destination"] == destination
            && line["policy"] == key
            && talk::is_inbound(line)
            && !line["reason"].is_null()
    };
    lab.mesh().access_log(node).iter().filter(named).count()
}

/// The control plane sends policies before who lists them, so the gap is made where it can be: in the last good configuration, from
/// which a worker starts while the control plane is away.
#[test]
fn a_policy_that_is_listed_and_has_not_arrived_refuses_until_it_does() -> Result<()> {
    let lab = support::mesh("doubt-listed")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").app(App::None))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&stranger));
    let server = |name: &str| lab.add_pod(Pod::new("shop", name).service_account(name).node(2));
    let (web, beside) = (server("web")?, server("beside")?);
    talk::everyone_known(&lab, &[&cart, &web, &beside])?;
    lab.apply("open", OPEN)?;
    talk::policy_arrived(&lab, "shop/open")?;
    for to in [&web, &beside].into_iter().flat_map(|pod| at(pod, ECHO)) {
        ensure!(talk::attempt(&cart, to)? == Met::Answered, "cart does not reach {to} before anything is missing");
    }
    let whole = wait::until("node 2's last good configuration to hold it all", CHANGE, || {
        saved(&lab).filter(|saved| saved.resources.iter().any(is_policy) && lists_it(saved))
    })?;
    lab.mesh().control_plane().kill()?;

    let mut gap = whole.clone();
    gap.resources.retain(|resource| !is_policy(resource));
    ensure!(lists_it(&gap), "the workload does not list the policy any more");
    start_from(&lab, &gap, false)?;
    let before = web.stats();
    for to in at(&web, ECHO) {
        for caller in [&cart, &stranger] {
            ensure!(
                talk::attempt(caller, to)? == Met::Refused,
                "{} reached {to} past a policy that is not there",
                caller.key()
            );
        }
        let refused =
            |line: &Value| line["destination"] == to.to_string().as_str() && line["reason"] == "PolicyUnknown";
        let caller = lab.mesh().wait_access(1, "cart's end of the refusal", |line| refused(line))?;
        let tunnel = lab.mesh().wait_access(2, "the called end", |line| refused(line) && line["id"] == caller["id"])?;
        let clear = lab
            .mesh()
            .wait_access(2, "the stranger's refusal", |line| refused(line) && line["direction"] == "inbound")?;
        for line in [&caller, &tunnel, &clear] {
            ensure!(field(line, "policy") == "shop/open", "{line}");
        }
    }
    ensure!(web.stats() == before, "the app heard of a refused connection: {before:?}, {:?}", web.stats());
    for to in at(&beside, ECHO) {
        ensure!(talk::attempt(&cart, to)? == Met::Answered, "{to}, which lists nothing, refuses");
    }

    start_from(&lab, &whole, true)?;
    for to in at(&web, ECHO) {
        for caller in [&cart, &stranger] {
            ensure!(
                talk::attempt(caller, to)? == Met::Answered,
                "{} does not reach {to} with the policy there",
                caller.key()
            );
        }
    }
    Ok(())
}

const OPEN: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: open}
spec: {selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{}]}
";

fn is_policy(resource: &SavedResource) -> bool {
    resource.type_url == AUTHORIZATION_TYPE && resource.name == "shop/open"
}

/// Whether the web pod's record names the policy; its key stands in the message as text.
fn lists_it(saved: &Saved) -> bool {
    let names = |resource: &SavedResource| resource.body.windows(9).any(|bytes| bytes == b"shop/open");
    saved.resources.iter().any(|resource| resource.type_url == ADDRESS_TYPE && names(resource))
}

/// Where node 2's worker keeps its last good configuration.
fn state_dir(lab: &Lab) -> PathBuf {
    lab.node(2).init().root("/var/lib/culvert/node-proxy")
}

fn saved(lab: &Lab) -> Option<Saved> {
    Saved::decode(&std::fs::read(state_dir(lab).join("last-good")).ok()?).ok()
}

/// Has node 2's worker start anew from this configuration, as the newest that the node has had; returns when it serves by it.
fn start_from(lab: &Lab, configuration: &Saved, with_policy: bool) -> Result<()> {
    let newest = saved(lab).context("a last good configuration")?.counter;
    let saved = Saved { counter: newest.max(configuration.counter) + 1, ..configuration.clone() };
    let (new, old) = (state_dir(lab).join(".new"), lab.mesh().worker_child(2)?);
    std::fs::write(&new, saved.encode())?;
    std::os::unix::fs::chown(&new, Some(lab::mesh::WORKER_UID), Some(lab::mesh::WORKER_UID))?;
    std::fs::rename(&new, state_dir(lab).join("last-good"))?;
    old.signal(Signal::KILL);
    wait::until_true("a new worker on node 2", CHANGE, || {
        lab.mesh().worker_child(2).is_ok_and(|worker| worker != old) && lab.mesh().wait_ready(2).is_ok()
    })?;
    talk::knows(lab, 2, "the configuration that was put in place", |config, workloads| {
        let there =
            config["policies"].as_array().is_some_and(|all| all.iter().any(|policy| policy["key"] == "shop/open"));
        let last_good = config["origin"]["last_good_written_at"].is_string();
        last_good && there == with_policy && workloads.as_array().is_some_and(|all| all.len() > 1)
    })
}
