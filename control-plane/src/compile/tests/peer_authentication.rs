//! PeerAuthentication.

use super::*;

const STATIC: &str = "culvert-system/istio_converted_static_strict";

/// Which policies cart and web list under these PeerAuthentications (namespace, name, spec), and the policies' text.
fn peers(default: DefaultMode, all: &[(&str, &str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let objects: String =
        all.iter().map(|(namespace, name, spec)| object("PeerAuthentication", namespace, name, spec)).collect();
    let yaml = [pod("cart", "198.18.1.2"), pod("web", "198.18.1.3"), objects].concat();
    let compiled = compiled_with(&yaml, &CompileConfig { default_mode: default, ..config() });
    let of = |name: &str| {
        let workload = compiled.workloads.iter().find(|w| w.pod.name == name).expect("the pod");
        workload.policies.iter().map(ToString::to_string).collect()
    };
    (of("cart"), of("web"), compiled.policies.iter().map(render_policy).collect())
}

#[test]
fn the_nearest_peer_authentication_decides() {
    use DefaultMode::{Permissive, Strict};
    let strict = "{mtls: {mode: STRICT}}";
    let permissive = "{mtls: {mode: PERMISSIVE}}";
    let disable = "{mtls: {mode: DISABLE}}";
    let unset = "{}";
    let cart = |mode: &str| format!("{{selector: {{matchLabels: {{app: cart}}}}, mtls: {{mode: {mode}}}}}");
    let (cart_strict, cart_permissive, cart_unset) = (cart("STRICT"), cart("PERMISSIVE"), cart("UNSET"));
    type Row<'a> = (DefaultMode, &'a [(&'a str, &'a str, &'a str)], bool, bool);
    let table: &[Row<'_>] = &[
        (Permissive, &[], false, false),
        (Strict, &[], true, true),
        (Permissive, &[("shop", "a", strict)], true, true),
        (Permissive, &[("other", "a", strict)], false, false),
        (Permissive, &[("culvert-system", "a", strict)], true, true),
        (Strict, &[("culvert-system", "a", permissive)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", permissive)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", disable)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", unset)], true, true),
        (Permissive, &[("shop", "a", strict), ("shop", "b", &cart_permissive)], false, true),
        (Permissive, &[("shop", "a", &cart_strict)], true, false),
        (Permissive, &[("shop", "a", strict), ("shop", "b", &cart_unset)], true, true),
        // Of two for one namespace the first by name, where neither has a time.
        (Permissive, &[("shop", "a", strict), ("shop", "b", permissive)], true, true),
        // A selector of the root namespace selects there alone.
        (Permissive, &[("culvert-system", "a", &cart_strict)], false, false),
    ];
    for (default, objects, cart, web) in table {
        let (at_cart, at_web, policies) = peers(*default, objects);
        let wanted = |strict: bool| if strict { vec![STATIC.to_owned()] } else { vec![] };
        assert_eq!((at_cart, at_web), (wanted(*cart), wanted(*web)), "{default:?} {objects:?}");
        let stands = policies.contains(&format!("deny {STATIC} [listed]: !id=*"));
        assert_eq!(stands, *default == Strict || !objects.is_empty(), "{policies:?}");
    }
}

#[test]
fn the_oldest_peer_authentication_of_a_level_decides() {
    let at = |name: &str, mode: &str, time: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop, \
             creationTimestamp: '{time}'}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    let young_and_old = [at("a", "PERMISSIVE", "2026-02-01T00:00:00Z"), at("b", "STRICT", "2026-01-01T00:00:00Z")];
    let all = compiled(&[pod("cart", "198.18.1.2"), young_and_old.concat()].concat());
    assert_eq!(all.workloads[0].policies.len(), 1, "b is older");
    assert_eq!(all.problems.len(), 1, "a has no effect");
}

#[test]
fn ports_that_differ_become_a_policy_of_their_own_instead_of_the_static_one() {
    let converted = "shop/converted_peer_authentication_p".to_owned();
    let spec = |mode: &str, ports: &str| {
        format!("{{selector: {{matchLabels: {{app: cart}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {ports}}}")
    };
    let (cart, web, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", &spec("STRICT", "{80: {mode: PERMISSIVE}, 90: {mode: DISABLE}}"))],
    );
    assert_eq!((cart, web), (vec![converted.clone()], vec![]));
    assert!(policies.contains(&format!("deny {converted} [listed]: !id=* & !port=80 & !port=90")), "{policies:?}");
    let (cart, _, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", &spec("PERMISSIVE", "{80: {mode: STRICT}, 90: {mode: STRICT}}"))],
    );
    assert_eq!(cart, [converted.as_str()]);
    assert!(
        policies.contains(&format!("deny {converted} [listed]: !id=* & port=80 ; !id=* & port=90")),
        "{policies:?}"
    );
    // Unset inherits; a port that says what holds anyway is no exception.
    let (cart, ..) =
        peers(DefaultMode::Strict, &[("shop", "p", &spec("UNSET", "{80: {mode: STRICT}, 90: {mode: UNSET}}"))]);
    assert_eq!(cart, [STATIC]);
    let (cart, ..) = peers(DefaultMode::Strict, &[("shop", "p", &spec("UNSET", "{80: {mode: PERMISSIVE}}"))]);
    assert_eq!(cart, [converted.as_str()]);
}

#[test]
fn a_peer_authentication_that_cannot_be_understood_refuses() {
    let (cart, web, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", "{selector: {matchLabels: {app: cart}}, mtls: {mode: SOMETIMES}}")],
    );
    assert_eq!((cart.len(), web.len()), (1, 0));
    assert!(
        policies.contains(&"refuse shop/converted_peer_authentication_p [listed]: everything".to_owned()),
        "{policies:?}"
    );
    let (_, _, policies) = peers(DefaultMode::Permissive, &[("shop", "p", "{mtls: {mode: SOMETIMES}}")]);
    assert!(policies.contains(&"refuse shop/converted_peer_authentication_p [namespace]: everything".to_owned()));
}
