//! The rules as written, read back by us and by `nft`, against golden files (`BLESS=1` writes them).

use mesh_model::Exclusions;
use mesh_net::Netns;
use mesh_net::capture::{Applied, Error, Mode, Session, Stage, owned_supported};

use crate::bed::{Bed, let_go, sh, spec, try_sh};

fn golden(name: &str, text: &str) {
    let path = format!("{}/src/capture/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{path} differs; look at the difference, then BLESS=1");
}

/// `nft list` with its counter values set to zero.
fn nft_listing(netns: &Netns) -> String {
    let listing = sh(netns, "nft list table inet culvert");
    let mut words: Vec<&str> = listing.split(' ').collect();
    for at in 1..words.len() {
        if matches!(words[at - 1], "packets" | "bytes") {
            words[at] = "0";
        }
    }
    words.join(" ")
}

#[test]
fn every_stage_reads_back_as_its_golden_files() {
    let bed = Bed::new();
    let mut session = bed.session(Mode::Plain);
    let stages = [
        (Stage::Deny, "deny"),
        (Stage::Learn, "learn"),
        (Stage::Redirect, "redirect"),
        (Stage::Part, "part"),
        (Stage::Drain, "drain"),
    ];
    for (stage, name) in stages {
        assert_eq!(session.apply(&spec(stage)).unwrap(), Applied::Written);
        let found = session.read().unwrap().unwrap();
        assert_eq!((found.spec, found.drift), (Some(spec(stage)), vec![]));
        golden(&format!("{name}.txt"), &session.render().unwrap());
        golden(&format!("{name}.nft"), &nft_listing(&bed.pod));
    }
}

#[test]
fn what_a_pod_excludes_reads_back_as_its_golden_files_and_is_told_from_a_strangers_change() {
    let bed = Bed::new();
    let mut exclusions = Exclusions::default();
    exclusions.inbound_ports.insert(9090);
    exclusions.outbound_ports.insert(5432);
    for range in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.7/32", "::/0", "fd00::/7", "fd77:0:0:a::7/128"] {
        exclusions.outbound_ranges.insert(range.parse().unwrap());
    }
    let mut session = bed.session(Mode::Plain);
    session.exclude(exclusions);
    assert_eq!(session.apply(&spec(Stage::Redirect)).unwrap(), Applied::Written);
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
    golden("excluded.txt", &session.render().unwrap());
    golden("excluded.nft", &nft_listing(&bed.pod));
    drop(session);

    // Somebody who comes later and knows of none finds them, and that there is nothing else.
    let mut later = bed.session(Mode::Plain);
    assert_eq!(later.read().unwrap().unwrap().drift.len(), (1 + 2 + 2) + 2 + 2 + 6);
    assert!(later.only_exclusions_differ().unwrap());
    sh(&bed.pod, "nft insert rule inet culvert output_route tcp dport 22 return");
    assert!(!later.only_exclusions_differ().unwrap());
    assert_eq!(later.apply(&spec(Stage::Redirect)).unwrap(), Applied::Written);
    assert_eq!(later.read().unwrap().unwrap().drift, vec![]);
}

#[test]
fn an_owned_table_reads_back_without_drift() {
    let bed = Bed::new();
    assert!(owned_supported());
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
    assert!(session.render().unwrap().contains("flags owner,persist"));
}

#[test]
fn applying_twice_writes_once() {
    let bed = Bed::new();
    for mode in [Mode::Plain, Mode::Owned] {
        let mut session = bed.applied(mode, Stage::Redirect);
        assert_eq!(session.apply(&spec(Stage::Redirect)).unwrap(), Applied::Unchanged);
        session.remove().unwrap();
    }
}

#[test]
fn removing_leaves_nothing_and_can_be_done_twice() {
    let bed = Bed::new();
    let all = "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all";
    let before = bed.pod_sh(all);
    for mode in [Mode::Plain, Mode::Owned] {
        let mut session = bed.applied(mode, Stage::Redirect);
        assert_ne!(bed.pod_sh(all), before);
        session.remove().unwrap();
        session.remove().unwrap();
        assert_eq!(bed.pod_sh(all), before);
        assert_eq!(session.read().unwrap(), None);
    }
}

#[test]
fn a_table_changes_its_mode_when_the_mode_changes() {
    let bed = Bed::new();
    let plain = bed.applied(Mode::Plain, Stage::Redirect);
    drop(plain);
    let mut owned = bed.session(Mode::Owned);
    assert_ne!(owned.read().unwrap().unwrap().drift, vec![]);
    assert_eq!(owned.apply(&spec(Stage::Redirect)).unwrap(), Applied::Written);
    assert_eq!(owned.read().unwrap().unwrap().drift, vec![]);
    assert!(matches!(Session::open(&bed.pod, Mode::Owned), Err(Error::OwnedByOther { .. })));
    drop(owned);
    let mut plain = bed.session(Mode::Plain);
    assert_eq!(let_go(|| plain.apply(&spec(Stage::Redirect))), Applied::Written);
    assert_eq!(plain.read().unwrap().unwrap().drift, vec![]);
}

#[test]
fn the_nodes_own_netns_is_refused() {
    let here = Netns::current().unwrap();
    assert!(matches!(Session::open(&here, Mode::Plain), Err(Error::HostNetns(_))));
    let bed = Bed::new();
    assert!(matches!(Session::open_in(&bed.pod, Mode::Plain, bed.pod.id()), Err(Error::HostNetns(_))));
}

#[test]
fn a_pod_without_ipv6_has_no_ipv6_rule_and_no_drift() {
    let bed = Bed::new();
    bed.pod_sh("echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
    assert!(!session.render().unwrap().contains("ipv6 r"));
    // Switched on later, it is noticed and repaired.
    bed.pod_sh("echo 0 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
    assert_eq!(session.read().unwrap().unwrap().drift.len(), 4);
    session.apply(&spec(Stage::Redirect)).unwrap();
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
}

#[test]
fn a_pod_whose_lo_is_down_is_named_as_the_cause() {
    let netns = Netns::create().unwrap();
    let mut session = Session::open(&netns, Mode::Plain).unwrap();
    assert!(matches!(session.apply(&spec(Stage::Deny)), Err(Error::LoopbackDown)));
    assert!(!try_sh(&netns, "nft list table inet culvert").0, "no table may stand without its way back");
}
