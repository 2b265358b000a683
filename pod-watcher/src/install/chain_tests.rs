//! What becomes of a network configuration.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Entry {
    Entry::new("/run/culvert/cni.sock".into(), 15, vec!["kube-system".to_owned()], "/var/lib/culvert/cni".into())
}

const OURS: &str = r#"{"type":"culvert-cni","socket":"/run/culvert/cni.sock","timeoutSeconds":15,"excludeNamespaces":["kube-system"],"stateDir":"/var/lib/culvert/cni"}"#;

fn with(text: &str) -> String {
    List::read(text).expect("a list").with(&entry())
}

fn without(text: &str) -> String {
    List::read(text).expect("a list").without()
}

#[test]
fn our_entry_comes_last_and_everything_else_stays_to_the_byte() {
    let table = [
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#.to_owned(),
            format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"bridge"}},{OURS}]}}"#),
        ),
        (
            // kindnet's own form: foreign keys before and behind, numbers as they were written.
            "{\n\t\"cniVersion\": \"0.3.1\",\n\t\"name\": \"kindnet\",\n\t\"plugins\": [\n\t{\n\t\t\"type\": \"ptp\",\n\t\t\"mtu\": 1.5e3\n\t},\n\t{\n\t\t\"type\": \"portmap\"\n\t}\n\t],\n\t\"zz\": 1.0\n}\n".to_owned(),
            format!("{{\n\t\"cniVersion\": \"0.3.1\",\n\t\"name\": \"kindnet\",\n\t\"plugins\": [\n\t{{\n\t\t\"type\": \"ptp\",\n\t\t\"mtu\": 1.5e3\n\t}},\n\t{{\n\t\t\"type\": \"portmap\"\n\t}},\n\t{OURS}\n\t],\n\t\"zz\": 1.0\n}}\n"),
        ),
    ];
    for (before, after) in table {
        assert_eq!(with(&before), after);
        assert_eq!(with(&after), after, "twice is once");
        assert_eq!(without(&after), before);
        assert_eq!(without(&before), before);
    }
}

#[test]
fn an_entry_that_stands_well_stays_there_and_one_that_does_not_is_set_right() {
    let list = |plugins: &[&str]| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{}]}}"#, plugins.join(", "));
    let (bridge, portmap, old) =
        (r#"{"type":"bridge"}"#, r#"{"type":"portmap"}"#, r#"{"type":"culvert-cni","socket":"/old"}"#);
    // Somebody came behind us: no fight over the last place. Ours may be written differently.
    let spaced = OURS.replace(':', " : ");
    assert_eq!(with(&list(&[bridge, &spaced, portmap])), list(&[bridge, &spaced, portmap]));
    assert_eq!(with(&list(&[bridge, old, portmap])), list(&[bridge, OURS, portmap]));
    // Twice, or before the plugin that makes the interface.
    assert_eq!(with(&list(&[bridge, OURS, portmap, OURS])), with(&list(&[bridge, portmap])));
    assert_eq!(with(&list(&[old, bridge, portmap])), with(&list(&[bridge, portmap])));
    for chain in [&[bridge, old, portmap, OURS][..], &[old, bridge, OURS, portmap], &[old, OURS, bridge, portmap]] {
        assert_eq!(without(&list(chain)), list(&[bridge, portmap]));
    }
}

#[test]
fn a_single_plugin_becomes_a_list_of_it_and_ours() {
    let single = "{ \"type\": \"ptp\", \"name\":\"n\", \"cniVersion\": \"0.4.0\", \"x\": 1e2 }\n";
    let list = list_of(single, &entry()).expect("a list");
    assert_eq!(
        list,
        format!(
            "{{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {},\n    {OURS}\n  ]\n}}\n",
            single.trim()
        )
    );
    assert_eq!(with(&list), list);
    let read = List::read(&list).expect("a list");
    assert!(read.is_made_of(single) && !read.is_made_of("{}"));
    let other = list.replace("0.4.0\", \"x\"", "0.4.0\", \"y\"");
    assert!(!List::read(&other).expect("a list").is_made_of(single), "its owner has changed it");
}

#[test]
fn what_cannot_be_understood_is_named_and_what_the_runtime_takes_all_the_same_is_told_apart() {
    let list = |text: &str| List::read(text).expect_err(text);
    let single = |text: &str| list_of(text, &entry()).expect_err(text);
    for text in [
        "",
        "{",
        "[]",
        r#"{"cniVersion":"1.0.0","name":"n"}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[5]}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":""}]}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"culvert-cni"}]}"#,
        r#"{"cniVersion":"1.0.0","name":"","plugins":[{"type":"bridge"}]}"#,
        r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#,
    ] {
        assert!(matches!(list(text), Unusable::Malformed(_)), "{text}: {}", list(text));
    }
    for text in ["", "[]", r#"{"name":"n","cniVersion":"1.0.0"}"#, r#"{"type":"x","plugins":[],"name":"n"}"#] {
        assert!(matches!(single(text), Unusable::Malformed(_)), "{text}: {}", single(text));
    }
    for text in [
        r#"{"name":"n","plugins":[{"type":"bridge"}]}"#,
        r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"bridge"}]}"#,
        r#"{"cniVersion":5,"name":"n","plugins":[{"type":"bridge"}]}"#,
        r#"{"cniVersion":"1.0.0","cniVersions":["1.0.0","9.0.0"],"name":"n","plugins":[{"type":"bridge"}]}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}],"plugins":[]}"#,
    ] {
        assert!(matches!(list(text), Unusable::Unfit(_)), "{text}: {}", list(text));
    }
    assert!(matches!(single(r#"{"type":"ptp","name":"n"}"#), Unusable::Unfit(_)));
}

fn space() -> impl Strategy<Value = String> {
    "[ \t\n]{0,3}"
}

fn plugin() -> impl Strategy<Value = String> {
    let more = prop::collection::vec(("[a-c\\\\u0041]{1,3}", "[0-9]{1,3}"), 0..3);
    (space(), "[d-z]{1,6}", more).prop_map(|(gap, kind, more)| {
        let more: String =
            more.iter().map(|(key, value)| format!("\"{}\":{gap}1{value},", key.replace('\\', "_"))).collect();
        format!("{{{gap}{more}\"type\"{gap}:{gap}{}}}", json!(kind))
    })
}

proptest! {
    #[test]
    fn whatever_the_list_taking_ours_out_gives_back_what_was_there(
        plugins in prop::collection::vec(plugin(), 1..4),
        gaps in prop::collection::vec(space(), 6),
        foreign in "[A-Z]{1,4}",
        order in any::<bool>(),
    ) {
        let separator = format!("{},{}", gaps[0], gaps[1]);
        let chain = format!("\"plugins\"{}:{}[{}{}{}]", gaps[2], gaps[3], gaps[1], plugins.join(&separator), gaps[4]);
        let rest = format!("\"cniVersion\":\"1.1.0\",{}\"name\":\"n\",\"{foreign}\":{{\"plugins\":[1]}}", gaps[5]);
        let text = if order { format!("{{{chain},{rest}}}\n") } else { format!(" {{{rest},{chain}}}") };
        let put = with(&text);
        prop_assert_eq!(without(&put), text);
        prop_assert_eq!(with(&put), put.clone());
        let read: Value = serde_json::from_str(&put).expect("JSON");
        let types: Vec<_> = read["plugins"].as_array().expect("a list").iter().map(|one| one["type"].clone()).collect();
        prop_assert_eq!(types.len(), plugins.len() + 1);
        prop_assert_eq!(types.last(), Some(&json!(PLUGIN)));
    }

    #[test]
    fn no_text_makes_it_stumble(text in r#"[\[\]{}":,\\ "plugins"type1-]{0,40}"#) {
        let _ = (List::read(&text), list_of(&text, &entry()));
    }
}
