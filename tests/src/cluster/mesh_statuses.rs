//! What stands at a policy: bad ones, huge ones and ones with the longest names each say what becomes of them, nothing else is disturbed
//! by them, and nobody is let in who was not.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::wait;
use serde_json::{Value, json};

use crate::shop::{self, Member, captured, meshed, start};
use crate::support::figure;

const CONDITION: &str = "culvert.io/Accepted";
/// The most rules that a policy of the promise has; the definition lets 10,240 through.
const RULES: usize = 10_000;
/// For a status: the control plane writes 20 a second, after it has compiled.
const TOLD: Duration = Duration::from_secs(60);

struct Policies<'a>(&'a Cluster);

impl Policies<'_> {
    /// Makes it. Not by `apply`, which keeps a second copy in an annotation, for which the largest here are too large.
    fn create(&self, kind: &str, namespace: &str, name: &str, spec: &Value) -> Result<()> {
        let metadata = json!({"name": name, "namespace": namespace});
        let object = json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec});
        self.0.kubectl_with(&object.to_string(), &["create", "-f", "-"]).map(drop)
    }

    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.0.get(&[kind, name, "-n", namespace])
    }

    /// What stands at it now, of the generation that there is.
    fn condition(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let object = self.object(kind, namespace, name)?;
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let mut ours = conditions
            .filter(|one| one["type"] == CONDITION && one["observedGeneration"] == object["metadata"]["generation"]);
        Ok(ours.next().cloned())
    }

    /// Waits until this stands at it.
    fn is_told(&self, kind: &str, namespace: &str, name: &str, status: &str, reason: &str, says: &str) -> Result<()> {
        let mut last = Value::Null;
        let told = wait::until_true("the condition of a policy", TOLD, || {
            last = self.condition(kind, namespace, name).ok().flatten().unwrap_or_default();
            last["status"] == status
                && last["reason"] == reason
                && last["message"].as_str().is_some_and(|text| text.contains(says))
        });
        told.with_context(|| format!("{kind} {namespace}/{name} should be {status} {reason} {says:?}, is {last}"))
    }

    fn versions(&self) -> Result<Vec<(String, String)>> {
        let list = self.0.get(&["authorizationpolicies,peerauthentications", "-A"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |one: &Value| (text(&one["metadata"]["name"]), text(&one["metadata"]["resourceVersion"]));
        Ok(list["items"].as_array().context("a list")?.iter().map(of).collect())
    }

    /// Waits until connections are answered, or refused; else says what the called node and the control planes have to say.
    fn until(&self, from: &Member, to: &Member, answered: bool) -> Result<()> {
        shop::until(from, to, answered).with_context(|| {
            let lines = shop::access_log(self.0, to.node).unwrap_or_default();
            let refused: Vec<_> = lines.iter().rev().filter(|line| !line["reason"].is_null()).take(3).collect();
            let pods = self.0.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default();
            format!("{}'s node, the last lines: {refused:?}\n{pods}", to.name)
        })
    }

    /// What `culvert check` prints.
    fn check(&self) -> Result<String> {
        let mut command = self.0.command(&lab::binaries::dir()?.join("culvert"));
        command.arg("check").stdin(Stdio::null());
        let output = self.0.lab().fabric().in_netns(|| command.output().context("start culvert"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether the control planes' account may patch policies, or this part of them.
    fn may_patch(&self, part: &[&str]) -> bool {
        let account = "--as=system:serviceaccount:culvert-system:control-plane";
        let asked = ["auth", "can-i", "patch", "authorizationpolicies.security.istio.io", "-n", "shop", account];
        self.0.kubectl(&[&asked[..], part].concat()).is_ok()
    }

    /// Which control plane writes.
    fn leader(&self) -> Result<String> {
        let lease = self.0.get(&["lease", "culvert-control-plane", "-n", NAMESPACE])?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    }
}

fn selecting(app: &str, more: Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": app}}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

/// Rules that each let one account in, the last of them `cart`.
fn many_rules() -> Vec<Value> {
    let account = |n: usize| if n + 1 == RULES { "cart".to_owned() } else { format!("nobody-{n}") };
    (0..RULES).map(|n| json!({"from": [{"source": {"serviceAccounts": [account(n)]}}]})).collect()
}

#[test]
fn each_bad_policy_says_what_happens_and_where_others_are_undisturbed_and_nobody_more_is_let_in() -> Result<()> {
    const AUTHORIZATION: &str = "AuthorizationPolicy";
    const PEER: &str = "PeerAuthentication";
    let (cluster, _) = meshed("kube-statuses", true)?;
    let long_namespace = "n".repeat(63);
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {long_namespace}, labels: {{culvert.io/mesh: enabled}}}}\n"
    ))?;
    let (cart, guest) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "guest", 1)?);
    let (web, bad) = (start(&cluster, "shop", "web", 2)?, start(&cluster, "shop", "bad", 2)?);
    let far = start(&cluster, &long_namespace, "far", 2)?;
    captured(&cluster, &[&cart, &guest, &web, &bad, &far], true)?;
    for to in [&web, &bad, &far] {
        shop::until(&guest, to, true)?;
    }
    let policies = Policies(&cluster);

    // Ten thousand rules, the last of which lets cart in.
    let begun = Instant::now();
    policies.create(AUTHORIZATION, "shop", "huge", &selecting("web", json!({"rules": many_rules()})))?;
    policies.until(&guest, &web, false)?;
    policies.until(&cart, &web, true)?;
    let note = format!("{RULES} rules, from the start of kubectl create");
    figure("huge_policy_enforced", begun.elapsed().as_millis(), "ms", &note);
    policies.is_told(AUTHORIZATION, "shop", "huge", "True", "Enforced", "ALLOW with 10000 rules")?;
    figure("huge_policy_told", begun.elapsed().as_millis(), "ms", &note);
    // More than the definition lets through is refused where it is written.
    let mut too_many = many_rules();
    too_many.extend(many_rules());
    let refused = policies.create(AUTHORIZATION, "shop", "more", &selecting("web", json!({"rules": too_many})));
    ensure!(refused.is_err(), "20,000 rules were taken");

    // What the definition lets pass and nobody can understand refuses what it selects, and says so with its place.
    let mut broken_rules = many_rules();
    broken_rules[RULES - 1] = json!({"from": [{"source": {"serviceAccount": ["cart"]}}]});
    let gateway = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]);
    let port_http = json!({"portLevelMtls": {"http": {"mode": "STRICT"}}});
    let table = [
        (
            AUTHORIZATION,
            "typo",
            selecting("bad", json!({"rules": [{"form": []}]})),
            "NotUnderstood",
            "spec.rules[0].form: unknown field",
        ),
        (
            AUTHORIZATION,
            "huge-typo",
            selecting("bad", json!({"rules": broken_rules})),
            "NotUnderstood",
            "spec.rules[9999].from[0].source.serviceAccount: ",
        ),
        (
            AUTHORIZATION,
            "block",
            selecting("bad", json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/99"]}}]}]})),
            "NotUnderstood",
            "spec.rules[0].from[0].source.ipBlocks: ",
        ),
        (
            AUTHORIZATION,
            "port-name",
            selecting("bad", json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]})),
            "NotUnderstood",
            "spec.rules[0].to[0].operation.ports: ",
        ),
        (
            AUTHORIZATION,
            "custom",
            selecting("bad", json!({"action": "CUSTOM", "provider": {"name": "x"}})),
            "NotSupported",
            "action CUSTOM",
        ),
        (PEER, "port", selecting("bad", port_http), "NotUnderstood", "spec.portLevelMtls"),
        (
            AUTHORIZATION,
            "audit",
            selecting("web", json!({"action": "AUDIT", "rules": [{}]})),
            "NoEffect",
            "it decides nothing",
        ),
        (AUTHORIZATION, "gateway", json!({"targetRefs": gateway}), "NoEffect", "Gateway g"),
        (
            AUTHORIZATION,
            "methods",
            selecting("web", json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})),
            "StricterThanWritten",
            "spec.rules[0]: HTTP",
        ),
    ];
    for (kind, name, spec, _, _) in &table {
        policies
            .create(kind, "shop", name, spec)
            .with_context(|| format!("{name}: the definition should let it pass"))?;
    }
    for (kind, name, spec, reason, says) in &table {
        policies.is_told(kind, "shop", name, "False", reason, says)?;
        if matches!(*reason, "NotUnderstood" | "NotSupported") && spec["selector"]["matchLabels"]["app"] == "bad" {
            policies.is_told(
                kind,
                "shop",
                name,
                "False",
                reason,
                "every connection to the pod that it selects is refused",
            )?;
        }
    }
    policies.until(&cart, &bad, false)?;
    policies.until(&guest, &bad, false)?;
    policies.until(&cart, &web, true)?;

    let said = policies.check()?;
    for named in
        ["shop/typo: NotUnderstood: spec.rules[0].form", "shop/custom: NotSupported: ", "shop/audit: NoEffect: "]
    {
        ensure!(said.contains(&format!("AuthorizationPolicy {named}")), "culvert check does not name {named}:\n{said}");
    }
    ensure!(!said.contains("shop/huge: "), "culvert check names a policy that is well:\n{said}");
    ensure!(policies.may_patch(&["--subresource=status"]) && !policies.may_patch(&[]), "rights of the control plane");

    // The longest names that there are.
    let (long_name, guests) = ("p".repeat(253), json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]));
    policies.create(
        AUTHORIZATION,
        &long_namespace,
        &long_name,
        &selecting("far", json!({"action": "DENY", "rules": guests})),
    )?;
    policies.create(PEER, &long_namespace, &long_name, &json!({"mtls": {"mode": "STRICT"}}))?;
    policies.until(&guest, &far, false)?;
    policies.is_told(
        AUTHORIZATION,
        &long_namespace,
        &long_name,
        "True",
        "Enforced",
        "DENY with 1 rule; in force at the pod",
    )?;
    policies.is_told(PEER, &long_namespace, &long_name, "True", "Enforced", "are refused; in force at the pod")?;

    // A good policy that is changed into a bad one stays what it was.
    let broken = json!({"spec": {"rules": [{"form": []}]}}).to_string();
    let patch = |name: &str, more: &[&str], patch: &str| {
        let head = ["patch", "authorizationpolicy", name, "-n", "shop", "--type=merge", "-p", patch];
        cluster.kubectl(&[&head, more].concat()).map(drop)
    };
    patch("huge", &[], &broken)?;
    policies.is_told(
        AUTHORIZATION,
        "shop",
        "huge",
        "False",
        "LastGoodKept",
        "the version before stays in force at the pod",
    )?;
    policies.until(&guest, &web, false)?;
    policies.until(&cart, &web, true)?;

    // A stranger's word does not stay.
    let forged = json!({"status": {"conditions": [{"type": CONDITION, "status": "True", "reason": "Enforced",
        "message": "all is well", "observedGeneration": 1, "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
    patch("typo", &["--subresource=status"], &forged.to_string())?;
    policies.is_told(AUTHORIZATION, "shop", "typo", "False", "NotUnderstood", "spec.rules[0].form: unknown field")?;

    // What only this control plane knows from before is not what this is about.
    cluster.kubectl(&["delete", "authorizationpolicy", "huge", "-n", "shop"])?;

    // The other control plane takes over and finds nothing to write but what is new.
    let (before, leader) = (policies.versions()?, policies.leader()?);
    cluster.kubectl(&["delete", "pod", &leader, "-n", NAMESPACE, "--wait=false"])?;
    wait::until_true("another control plane to lead", TOLD, || {
        policies.leader().is_ok_and(|now| !now.is_empty() && now != leader)
    })?;
    policies.create(AUTHORIZATION, "shop", "last", &selecting("nobody", json!({"action": "DENY"})))?;
    policies.is_told(AUTHORIZATION, "shop", "last", "True", "SelectsNoPod", "DENY without rules")?;
    let after: Vec<_> = policies.versions()?.into_iter().filter(|(name, _)| name != "last").collect();
    ensure!(before == after, "rewritten: {before:?}\n{after:?}");

    // Mended, it lets those in again that it should, and nobody more.
    cluster.kubectl(&[
        "delete",
        "authorizationpolicies,peerauthentications",
        "--all",
        "-n",
        "shop",
        "--timeout=60s",
    ])?;
    policies.until(&guest, &bad, true)?;
    policies.until(&guest, &web, true)?;
    policies.until(&guest, &far, false)
}
