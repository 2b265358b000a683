//! Every kind of condition, negated and not, allowing and denying, and every scope: asked of the running mesh, each caller against
//! each destination, over both families.

use anyhow::{Context, Result, ensure};
use lab::{App, Pod, PodHandle, wait};
use serde_json::{Value, json};

use crate::support::{self, CHANGE};
use crate::talk::{self, Met, field};

const ONE: u16 = 7000;
const TWO: u16 = 9000;
/// Everyone: `c` shop/cart, `g` shop/guest, `m` depot/cart on the other node, `s` a stranger without identity.
const ALL: &str = "cgms";

struct Case {
    policies: Vec<Policy>,
    /// Who reaches web:7000, web:9000 (near and far pod alike), other:7000 of the same namespace, yard:7000 of another.
    reach: [&'static str; 4],
}

/// `at` is NAMESPACE, or NAMESPACE/APP for the pods with this label.
struct Policy {
    action: &'static str,
    at: &'static str,
    rules: &'static str,
}

const fn allow(at: &'static str, rules: &'static str) -> Policy {
    Policy { action: "ALLOW", at, rules }
}

const fn deny(at: &'static str, rules: &'static str) -> Policy {
    Policy { action: "DENY", at, rules }
}

macro_rules! from {
    ($source:literal) => {
        concat!("[{from: [{source: {", $source, "}}]}]")
    };
}
macro_rules! to {
    ($operation:literal) => {
        concat!("[{to: [{operation: {", $operation, "}}]}]")
    };
}

fn web(policy: fn(&'static str, &'static str) -> Policy, rules: &'static str, who: &'static str) -> Case {
    Case { policies: vec![policy("shop/web", rules)], reach: [who, who, ALL, ALL] }
}

fn port(
    policy: fn(&'static str, &'static str) -> Policy,
    rules: &'static str,
    one: &'static str,
    two: &'static str,
) -> Case {
    Case { policies: vec![policy("shop/web", rules)], reach: [one, two, ALL, ALL] }
}

fn case<const N: usize>(policies: [Policy; N], reach: [&'static str; 4]) -> Case {
    Case { policies: policies.into(), reach }
}

fn cases() -> Vec<Case> {
    vec![
        web(allow, from!("principals: [cluster.local/ns/shop/sa/cart]"), "c"),
        web(deny, from!("principals: [cluster.local/ns/shop/sa/cart]"), "gms"),
        web(allow, from!("notPrincipals: [cluster.local/ns/shop/sa/cart]"), "gms"),
        web(deny, from!("notPrincipals: [cluster.local/ns/shop/sa/cart]"), "c"),
        web(allow, from!("principals: ['*']"), "cgm"),
        web(deny, from!("notPrincipals: ['*']"), "cgm"),
        web(allow, from!("principals: ['cluster.local/ns/shop/*']"), "cg"),
        web(allow, from!("principals: ['*/sa/cart']"), "cm"),
        web(allow, from!("namespaces: [shop]"), "cg"),
        web(deny, from!("namespaces: [shop]"), "ms"),
        web(allow, from!("notNamespaces: [shop]"), "ms"),
        web(deny, from!("notNamespaces: [shop]"), "cg"),
        web(allow, from!("serviceAccounts: [cart]"), "c"),
        web(deny, from!("serviceAccounts: [depot/cart, guest]"), "cs"),
        web(allow, from!("notServiceAccounts: [cart]"), "gms"),
        web(deny, from!("notServiceAccounts: [shop/cart]"), "c"),
        web(allow, from!("ipBlocks: [CART4, CART6]"), "c"),
        web(deny, from!("ipBlocks: [CART4, CART6]"), "gms"),
        web(allow, from!("notIpBlocks: [CART4, CART6]"), "gms"),
        web(deny, from!("notIpBlocks: [198.18.1.0/24, 'fd77:0:0:1::/64']"), "cgs"),
        web(allow, from!("principals: ['*'], notNamespaces: [depot]"), "cg"),
        web(allow, from!("namespaces: [shop], notIpBlocks: [CART4, CART6]"), "g"),
        port(allow, to!("ports: ['7000']"), ALL, ""),
        port(deny, to!("ports: ['7000']"), "", ALL),
        port(allow, to!("notPorts: ['7000']"), "", ALL),
        port(deny, to!("notPorts: ['7000']"), ALL, ""),
        port(allow, "[{from: [{source: {serviceAccounts: [cart]}}], to: [{operation: {ports: ['7000']}}]}]", "c", ""),
        web(allow, "[]", ""),
        web(allow, "[{}]", ALL),
        web(deny, "[]", ALL),
        web(deny, "[{}]", ""),
        case([allow("shop", from!("namespaces: [shop]"))], ["cg", "cg", "cg", ALL]),
        case([deny("depot", from!("principals: [cluster.local/ns/shop/sa/cart]"))], [ALL, ALL, ALL, "gms"]),
        case([deny("depot/web", from!("principals: [cluster.local/ns/shop/sa/cart]"))], [ALL, ALL, ALL, "gms"]),
        case([deny("culvert-system", from!("namespaces: [depot]"))], ["cgs", "cgs", "cgs", "cgs"]),
        case([deny("culvert-system/web", from!("namespaces: [shop]"))], ["ms", "ms", ALL, "ms"]),
        // A DENY wins over an ALLOW; two ALLOW add up, also from two scopes.
        case(
            [allow("shop/web", from!("namespaces: [shop]")), deny("shop/web", from!("serviceAccounts: [guest]"))],
            ["c", "c", ALL, ALL],
        ),
        case(
            [allow("shop/web", from!("serviceAccounts: [cart]")), allow("shop", from!("serviceAccounts: [guest]"))],
            ["cg", "cg", "g", ALL],
        ),
        case(
            [allow("culvert-system", from!("namespaces: [shop]")), allow("shop/web", to!("ports: ['9000']"))],
            ["cg", ALL, "cg", "cg"],
        ),
    ]
}

#[test]
fn every_kind_of_condition_and_every_scope_lets_exactly_those_through_that_it_names() -> Result<()> {
    let cast = Cast::open()?;
    let cases = cases();
    cast.check("without a policy", &[], [ALL; 4])?;
    for (number, case) in cases.iter().enumerate() {
        let named: Vec<(String, &Policy)> =
            case.policies.iter().enumerate().map(|(n, policy)| (format!("case-{number}-{n}"), policy)).collect();
        let text: String = named.iter().map(|(name, policy)| policy.manifest(name, &cast)).collect();
        let keys: Vec<String> = named.iter().map(|(name, policy)| format!("{}/{name}", policy.namespace())).collect();
        cast.lab.apply("case", &text)?;
        cast.wait_only(&keys).with_context(|| text.clone())?;
        cast.check(&text, &keys, case.reach)?;
    }
    support::figure("policy_cases", cases.len(), "cases", "4 callers, 6 destinations, 2 families each");
    Ok(())
}

impl Policy {
    fn namespace(&self) -> &'static str {
        self.at.split('/').next().unwrap_or(self.at)
    }

    fn manifest(&self, name: &str, cast: &Cast) -> String {
        let Policy { action, at, rules } = self;
        let selector = at
            .split_once('/')
            .map(|(_, app)| format!("  selector: {{matchLabels: {{app: {app}}}}}\n"))
            .unwrap_or_default();
        let rules =
            rules.replace("CART4", &cast.cart.v4().to_string()).replace("CART6", &format!("'{}'", cast.cart.v6()));
        let namespace = self.namespace();
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
             spec:\n{selector}  action: {action}\n  rules: {rules}\n"
        )
    }
}

struct Cast {
    lab: crate::support::Watched,
    cart: PodHandle,
    callers: Vec<(char, PodHandle)>,
    /// (destination, port, column of the expectation)
    called: Vec<(PodHandle, u16, usize)>,
}

impl Cast {
    fn open() -> Result<Cast> {
        let lab = support::mesh("policy-table")?;
        lab.namespace("depot", &[("culvert.io/mesh", "enabled")])?;
        let caller = |namespace: &str, name: &str, account: &str, node| {
            lab.add_pod(Pod::new(namespace, name).service_account(account).node(node).app(App::None))
        };
        let server = |namespace: &str, name: &str, app: &str, node| {
            let servers = App::serve(&[("echo", ONE), ("echo", TWO)]);
            lab.add_pod(Pod::new(namespace, name).label("app", app).service_account(app).node(node).app(servers))
        };
        let cart = caller("shop", "cart", "cart", 1)?;
        let callers = vec![
            ('c', cart.clone()),
            ('g', caller("shop", "guest", "guest", 1)?),
            ('m', caller("depot", "mate", "cart", 2)?),
            ('s', caller("outside", "stranger", "default", 1)?),
        ];
        lab.allow("a stranger to the mesh", support::Clear::of(&callers[3].1));
        let (near, far) = (server("shop", "near", "web", 1)?, server("shop", "far", "web", 2)?);
        let (other, yard) = (server("shop", "other", "other", 1)?, server("depot", "yard", "web", 2)?);
        let called = vec![
            (near.clone(), ONE, 0),
            (far.clone(), ONE, 0),
            (near, TWO, 1),
            (far, TWO, 1),
            (other, ONE, 2),
            (yard, ONE, 3),
        ];
        let pods: Vec<&PodHandle> =
            callers.iter().map(|(_, pod)| pod).chain(called.iter().map(|(pod, ..)| pod)).collect();
        talk::everyone_known(&lab, &pods)?;
        Ok(Cast { lab, cart, callers, called })
    }

    /// Waits until both workers know these policies and no other, and every workload lists those that select it and no other.
    fn wait_only(&self, keys: &[String]) -> Result<()> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for node in [1, 2] {
            talk::knows(&self.lab, node, "the case's policies", |config, workloads| {
                let mut known: Vec<Value> = list(&config["policies"]).iter().map(|p| p["key"].clone()).collect();
                known.sort_by_key(Value::to_string);
                let listed = |key: &Value| list(workloads).iter().any(|w| list(&w["policies"]).contains(key));
                let selecting = list(&config["policies"]).into_iter().filter(|p| p["scope"] == "Selector");
                let stray = list(workloads).iter().flat_map(|w| list(&w["policies"])).any(|key| !known.contains(&key));
                known == keys.iter().map(|key| json!(key)).collect::<Vec<_>>()
                    && selecting.into_iter().all(|p| listed(&p["key"]))
                    && !stray
            })?;
        }
        Ok(())
    }

    /// Each caller against each destination; then the apps' counts and both ends' logs of what was refused.
    fn check(&self, text: &str, keys: &[String], reach: [&str; 4]) -> Result<()> {
        let (mut at_called, mut at_caller) = (0, 0);
        for (pod, port, column) in &self.called {
            for to in talk::at(pod, *port) {
                let before = pod.stats().port(*port).connections;
                let expected = reach[*column];
                let mut passed = String::new();
                for (letter, caller) in &self.callers {
                    match talk::attempt(caller, to).with_context(|| text.to_owned())? {
                        Met::Answered => passed.push(*letter),
                        Met::Refused => {
                            at_called += 1;
                            at_caller += usize::from(*letter != 's');
                        }
                        met => anyhow::bail!("{} at {to}: {met:?} under\n{text}", caller.key()),
                    }
                }
                ensure!(passed == expected, "{} at {to}: {passed:?} pass, {expected:?} may, under\n{text}", pod.key());
                let counted = pod.stats().port(*port).connections - before;
                ensure!(
                    counted == expected.len() as u64,
                    "the app at {to} counted {counted} connections, {expected:?} may, under\n{text}"
                );
            }
        }
        self.named(keys, at_called, at_caller).with_context(|| text.to_owned())
    }

    /// Every refusal stands in the log of the called end, and in the caller's when that is in the mesh, with a policy of the case.
    fn named(&self, keys: &[String], at_called: usize, at_caller: usize) -> Result<()> {
        let mut counted = (0, 0);
        wait::until_true("every refusal in both logs", CHANGE, || {
            let lines = talk::lines(&self.lab);
            let refused = |line: &&Value| {
                line["reason"] == "PolicyDenied" && keys.iter().any(|key| line["policy"] == key.as_str())
            };
            let inbound = lines.iter().filter(refused).filter(|line| talk::is_inbound(line)).count();
            let outbound = lines.iter().filter(refused).filter(|line| field(line, "direction") == "outbound").count();
            counted = (inbound, outbound);
            counted == (at_called, at_caller)
        })
        .with_context(|| {
            format!("{at_called} refusals, {at_caller} of mesh pods; lines of called and calling ends: {counted:?}")
        })
    }
}
