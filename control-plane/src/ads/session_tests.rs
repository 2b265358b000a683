//! The state machine alone: what is sent, in which order, to clients that behave and that do not.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::xds::discovery::Status;
use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use proptest::prelude::*;

use super::*;

/// In two shards, which are shared with the table before where they are the same.
fn table<'a>(type_url: &str, entries: impl IntoIterator<Item = (&'a str, &'a str)>, last: &Table) -> Table {
    let mut shards = BTreeMap::from([("even", Vec::new()), ("odd", Vec::new())]);
    for (name, version) in entries {
        let shard = if name.bytes().last().is_some_and(|last| last % 2 == 0) { "even" } else { "odd" };
        let resource =
            SavedResource { type_url: type_url.into(), name: name.into(), version: version.into(), body: Vec::new() };
        shards.entry(shard).or_default().push(resource);
    }
    let mut table = Table::default();
    shards.into_iter().for_each(|(shard, resources)| table.put(shard, resources.into_iter(), last));
    table
}

fn snapshot(generation: u64, addresses: &[(&str, &str)], policies: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.generation = generation;
    snapshot.addresses = table(ADDRESS_TYPE, addresses.iter().copied(), &Table::default());
    snapshot.policies = table(AUTHORIZATION_TYPE, policies.iter().copied(), &Table::default());
    snapshot
}

fn subscribe(type_url: &str, names: &[&str], held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        initial_resource_versions: held.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn answer(response: &DeltaDiscoveryResponse, refused: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: refused.map(|message| Status { code: 3, message: message.into(), details: vec![] }),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A client that asked for everything of both types and holds this.
fn both(addresses: &[(&str, &str)], policies: &[(&str, &str)]) -> Session {
    let mut session = Session::default();
    session.request(subscribe(ADDRESS_TYPE, &[], addresses)).expect("taken");
    session.request(subscribe(AUTHORIZATION_TYPE, &[], policies)).expect("taken");
    session
}

/// The next round, without what each answer is a push of.
fn said(session: &mut Session, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
    let whole = |Answer { head, resources }| DeltaDiscoveryResponse {
        resources: resources.into_iter().map(|one| Arc::unwrap_or_clone(one).into()).collect(),
        ..head
    };
    session.round(snapshot).into_iter().map(|(_, answer)| whole(answer)).collect()
}

/// `P+a,b-c` for policies sent and removed, `A+…` for addresses.
fn text(round: &[DeltaDiscoveryResponse]) -> Vec<String> {
    round
        .iter()
        .map(|response| {
            let kind = if response.type_url == ADDRESS_TYPE { 'A' } else { 'P' };
            let mut sent: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
            sent.sort_unstable();
            format!("{kind}+{}-{}", sent.join(","), response.removed_resources.join(","))
        })
        .collect()
}

fn acknowledge(session: &mut Session, round: &[DeltaDiscoveryResponse]) {
    for response in round {
        assert!(matches!(session.request(answer(response, None)), Ok(Meaning::Acked(_))));
    }
    assert!(!session.waits());
}

#[test]
fn the_first_round_answers_both_types_even_if_there_is_nothing() {
    let mut session = both(&[], &[]);
    let round = said(&mut session, &snapshot(1, &[], &[]));
    assert_eq!(text(&round), ["P+-", "A+-"]);
    acknowledge(&mut session, &round);
    assert!(said(&mut session, &snapshot(2, &[], &[])).is_empty(), "nothing changed, nothing is said");
}

#[test]
fn policies_come_before_addresses_and_their_removal_after() {
    let mut session = both(&[], &[]);
    let first = said(&mut session, &snapshot(1, &[("w", "1")], &[("old", "1")]));
    assert_eq!(text(&first), ["P+old-", "A+w-"]);
    acknowledge(&mut session, &first);
    let second = said(&mut session, &snapshot(2, &[("w", "2")], &[("new", "1")]));
    assert_eq!(text(&second), ["P+new-", "A+w-", "P+-old"]);
}

#[test]
fn a_policy_for_all_that_becomes_one_of_some_does_so_after_they_list_it() {
    for reconnects in [false, true] {
        let mut session = both(&[], &[]);
        let first = said(&mut session, &snapshot(1, &[("w", "1")], &[("p", "1"), ("q", "s1"), ("r", "1")]));
        acknowledge(&mut session, &first);
        if reconnects {
            session = both(&[("w", "1")], &[("p", "1"), ("q", "s1"), ("r", "1")]);
        }
        let second = said(&mut session, &snapshot(2, &[("w", "2")], &[("p", "s2"), ("q", "s2"), ("r", "2")]));
        assert_eq!(text(&second), ["P+q,r-", "A+w-", "P+p-"]);
        acknowledge(&mut session, &second);
        // And back: for all before nobody lists it.
        let third = said(&mut session, &snapshot(3, &[("w", "3")], &[("p", "3"), ("q", "s2")]));
        assert_eq!(text(&third), ["P+p-", "A+w-", "P+-r"]);
    }
}

#[test]
fn a_policy_that_is_asked_for_again_comes_first_whatever_it_has_become() {
    let mut session = both(&[], &[]);
    let first = said(&mut session, &snapshot(1, &[("w", "1")], &[("p", "1")]));
    acknowledge(&mut session, &first);
    let mut again = subscribe(AUTHORIZATION_TYPE, &[], &[]);
    again.resource_names_unsubscribe = vec!["p".into()];
    session.request(again).expect("taken");
    assert_eq!(text(&said(&mut session, &snapshot(2, &[("w", "2")], &[("p", "s2")]))), ["P+p-", "A+w-"]);
}

#[test]
fn a_reconnecting_client_gets_what_changed_and_is_told_what_is_gone() {
    // What it refused it tells without a version.
    let policies = [("p", "1"), ("q", "1"), ("refused", ""), ("refused and gone", "")];
    let mut session = both(&[("same", "1"), ("changed", "1"), ("gone", "1")], &policies);
    let addresses = [("same", "1"), ("changed", "2"), ("fresh", "1")];
    let round = said(&mut session, &snapshot(9, &addresses, &[("p", "1"), ("refused", "1")]));
    assert_eq!(text(&round), ["P+refused-", "A+changed,fresh-gone", "P+-q,refused and gone"]);
}

#[test]
fn nothing_is_sent_while_an_answer_waits_and_the_newest_after() {
    let mut session = both(&[], &[]);
    let first = said(&mut session, &snapshot(1, &[("a", "1")], &[]));
    session.request(answer(&first[0], None)).expect("taken");
    assert!(session.waits(), "the addresses are not acknowledged");
    session.request(answer(&first[1], None)).expect("taken");
    // Snapshots 2 to 8 came and went.
    assert_eq!(text(&said(&mut session, &snapshot(9, &[("z", "1")], &[]))), ["A+z-a"]);
}

#[test]
fn a_refusal_frees_the_stream_and_is_not_repeated_until_the_resource_changes() {
    let mut session = both(&[], &[]);
    let round = said(&mut session, &snapshot(1, &[("a", "1")], &[]));
    let meaning = session.request(answer(&round[1], Some("a: bad"))).expect("taken");
    assert_eq!(meaning, Meaning::Refused { of: ResourceType::Address, message: "a: bad".into() });
    session.request(answer(&round[0], None)).expect("taken");
    assert!(said(&mut session, &snapshot(2, &[("a", "1")], &[])).is_empty());
    assert_eq!(text(&said(&mut session, &snapshot(3, &[("a", "2")], &[]))), ["A+a-"]);
}

#[test]
fn a_nonce_that_is_not_ours_or_of_the_other_type_acknowledges_nothing() {
    let mut session = both(&[], &[]);
    let round = said(&mut session, &snapshot(1, &[], &[]));
    let mut crossed = answer(&round[0], None);
    crossed.type_url = ADDRESS_TYPE.into();
    assert_eq!(session.request(crossed), Ok(Meaning::Stale));
    let mut unknown = answer(&round[0], None);
    unknown.response_nonce = "nonsense".into();
    assert_eq!(session.request(unknown), Ok(Meaning::Stale));
    acknowledge(&mut session, &round);
    assert_eq!(session.request(answer(&round[0], None)), Ok(Meaning::Stale), "twice");
}

#[test]
fn named_subscriptions_get_their_names_and_learn_what_is_missing() {
    let mut session = Session::default();
    session.request(subscribe(ADDRESS_TYPE, &["a", "nobody"], &[])).expect("taken");
    assert!(session.lacks_policies());
    let first = said(&mut session, &snapshot(1, &[("a", "1"), ("b", "1")], &[("p", "1")]));
    assert_eq!(text(&first), ["A+a-nobody"], "policies were not asked for");
    acknowledge(&mut session, &first);
    // Asked for again: answered again. Unsubscribed: not even removed.
    let mut more = subscribe(ADDRESS_TYPE, &["b"], &[]);
    more.resource_names_unsubscribe = vec!["a".into()];
    session.request(more).expect("taken");
    let second = said(&mut session, &snapshot(2, &[("a", "2"), ("b", "1")], &[]));
    assert_eq!(text(&second), ["A+b-"]);
    acknowledge(&mut session, &second);
    assert!(said(&mut session, &snapshot(3, &[("a", "3"), ("b", "1")], &[])).is_empty());
    assert_eq!(text(&said(&mut session, &snapshot(4, &[("a", "3")], &[]))), ["A+-b"]);
}

#[test]
fn star_is_everything_and_can_be_given_up() {
    let mut session = Session::default();
    session.request(subscribe(ADDRESS_TYPE, &["*"], &[])).expect("taken");
    let first = said(&mut session, &snapshot(1, &[("a", "1"), ("b", "1")], &[]));
    assert_eq!(text(&first), ["A+a,b-"]);
    acknowledge(&mut session, &first);
    let mut fewer = subscribe(ADDRESS_TYPE, &["a"], &[]);
    fewer.resource_names_unsubscribe = vec!["*".into()];
    session.request(fewer).expect("taken");
    let second = said(&mut session, &snapshot(2, &[("a", "2"), ("b", "2")], &[]));
    assert_eq!(text(&second), ["A+a-"]);
    acknowledge(&mut session, &second);
    let third = said(&mut session, &snapshot(3, &[("a", "3"), ("b", "3")], &[]));
    assert_eq!(text(&third), ["A+a-"]);
    acknowledge(&mut session, &third);
    // And taken again: it has one of them.
    session.request(subscribe(ADDRESS_TYPE, &["*"], &[])).expect("taken");
    let fourth = said(&mut session, &snapshot(4, &[("a", "3"), ("b", "3"), ("c", "1")], &[]));
    assert_eq!(text(&fourth), ["A+b,c-"]);
    acknowledge(&mut session, &fourth);
    assert_eq!(text(&said(&mut session, &snapshot(5, &[("c", "1")], &[]))), ["A+-a,b"]);
}

#[test]
fn what_is_given_up_while_everything_is_wanted_is_told_again() {
    let mut session = both(&[], &[]);
    let all = snapshot(1, &[("a", "1"), ("b", "1")], &[]);
    let first = said(&mut session, &all);
    acknowledge(&mut session, &first);
    let mut fewer = subscribe(ADDRESS_TYPE, &["a"], &[]);
    fewer.resource_names_unsubscribe = vec!["a".into()];
    session.request(fewer).expect("taken");
    assert_eq!(text(&said(&mut session, &all)), ["A+a-"]);
    // Asked for by name, then everything, then not by name: it was never told.
    let mut session = Session::default();
    session.request(subscribe(ADDRESS_TYPE, &["a"], &[])).expect("taken");
    let first = said(&mut session, &all);
    acknowledge(&mut session, &first);
    let mut more = subscribe(ADDRESS_TYPE, &["b", "*"], &[]);
    more.resource_names_unsubscribe = vec!["b".into()];
    session.request(more).expect("taken");
    assert_eq!(text(&said(&mut session, &all)), ["A+b-"]);
}

#[test]
fn what_is_asked_for_between_two_answers_is_bounded_and_all_that_a_large_node_has_may_be_given_up() {
    let names = |prefix: &str, count: usize| -> Vec<String> { (0..count).map(|n| format!("{prefix}{n}")).collect() };
    let has = names("a", 2 * MOST_NAMES);
    let table: Vec<_> = has.iter().map(|name| (name.as_str(), "1")).collect();
    let mut session = both(&[], &[]);
    let round = said(&mut session, &snapshot(1, &table, &[]));
    let change = |give_up: Vec<String>, ask: Vec<String>| DeltaDiscoveryRequest {
        resource_names_unsubscribe: give_up,
        resource_names_subscribe: ask,
        ..subscribe(ADDRESS_TYPE, &[], &[])
    };
    assert_eq!(session.request(change(has.clone(), Vec::new())), Ok(Meaning::Subscribed));
    assert_eq!(session.request(change(Vec::new(), has[..MOST_NAMES].to_vec())), Ok(Meaning::Subscribed));
    // It acknowledges nothing and gives up what it never had.
    assert_eq!(session.request(change(names("b", MOST_NAMES), Vec::new())), Ok(Meaning::Subscribed));
    assert_eq!(session.request(change(vec!["one more".into()], Vec::new())), Err(BadRequest::Asked));
    drop(round);
}

#[test]
fn a_name_that_can_be_nobodys_ends_the_stream() {
    let long = "x".repeat(LONGEST_NAME + 1);
    let given_up =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec![long.clone()], ..subscribe(ADDRESS_TYPE, &[], &[]) };
    let brought = subscribe(ADDRESS_TYPE, &[], &[(&long, "1")]);
    assert_eq!(Session::default().request(brought), Err(BadRequest::LongName));
    for request in [subscribe(ADDRESS_TYPE, &[&long], &[]), given_up] {
        assert_eq!(both(&[], &[]).request(request), Err(BadRequest::LongName));
    }
    assert_eq!(both(&[], &[]).request(subscribe(ADDRESS_TYPE, &[&long[1..]], &[])), Ok(Meaning::Subscribed));
}

#[test]
fn long_names_are_bounded_by_what_they_take_together() {
    let long = "x".repeat(LONGEST_NAME - 10);
    let names: Vec<_> = (0..MOST_BYTES / LONGEST_NAME).map(|n| format!("{long}{n:010}")).collect();
    let ask = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        subscribe(ADDRESS_TYPE, &names, &[])
    };
    // Each is remembered twice: as one that it wants, and as one that it has not been answered yet.
    let (half, rest) = names.split_at(names.len() / 2);
    let mut session = Session::default();
    assert_eq!(session.request(ask(half)), Ok(Meaning::Subscribed));
    assert_eq!(session.request(ask(rest)), Err(BadRequest::Bytes));
}

#[test]
fn a_type_that_is_not_served_ends_the_stream() {
    let mut session = Session::default();
    assert!(matches!(session.request(subscribe("type.googleapis.com/x.Y", &[], &[])), Err(BadRequest::Type(_))));
}

/// A world: workload → the policies it lists; a policy's version. Policies that are listed exist.
type World = (BTreeMap<u8, BTreeSet<u8>>, BTreeMap<u8, u8>);

fn world() -> impl Strategy<Value = World> {
    (
        prop::collection::btree_map(0_u8..6, prop::collection::btree_set(0_u8..5, 0..3), 0..6),
        prop::collection::btree_map(0_u8..5, 0_u8..3, 0..5),
    )
        .prop_map(|(workloads, mut policies)| {
            for listed in workloads.values().flatten() {
                policies.entry(*listed).or_insert(0);
            }
            (workloads, policies)
        })
}

fn of_world((workloads, policies): &World, generation: u64, last: &Snapshot) -> Snapshot {
    // A workload's version says which policies it lists: the client below reads it back.
    let addresses: Vec<(String, String)> = workloads
        .iter()
        .map(|(name, listed)| {
            (format!("w{name}"), listed.iter().map(|p| format!("p{p}")).collect::<Vec<_>>().join(","))
        })
        .collect();
    // One of three is in force for all.
    let policies: Vec<(String, String)> = policies
        .iter()
        .map(|(name, version)| (format!("p{name}"), format!("{}{version}", if *version == 1 { "" } else { "s" })))
        .collect();
    let view =
        |all: &[(String, String)], of, last| table(of, all.iter().map(|(name, version)| (&**name, &**version)), last);
    let mut snapshot = snapshot(generation, &[], &[]);
    snapshot.addresses = view(&addresses, ADDRESS_TYPE, &last.addresses);
    snapshot.policies = view(&policies, AUTHORIZATION_TYPE, &last.policies);
    snapshot
}

/// (workload, policy) of each policy that is in force for a workload.
fn in_force(addresses: &BTreeMap<String, String>, policies: &BTreeMap<String, String>) -> BTreeSet<(String, String)> {
    let is = |listed: &str, policy: &str, version: &str| {
        !is_listed_only(version) || listed.split(',').any(|listed| listed == policy)
    };
    let of = |(workload, listed): (&String, &String)| {
        let policies = policies.iter().filter(|(policy, version)| is(listed, policy, version));
        policies.map(|(policy, _)| (workload.clone(), policy.clone())).collect::<Vec<_>>()
    };
    addresses.iter().flat_map(of).collect()
}

fn take(held: &mut BTreeMap<String, String>, response: &DeltaDiscoveryResponse) {
    response.removed_resources.iter().for_each(|name| drop(held.remove(name)));
    held.extend(response.resources.iter().map(|one| (one.name.clone(), one.version.clone())));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the configurations, whoever is slow and whenever the stream breaks: a client never has a workload that lists a policy
    /// which it lacks, a policy that is in force for a workload before and after a round is so all the time, and in the end it has
    /// exactly what is there.
    #[test]
    fn a_client_never_holds_a_workload_without_its_policies_and_ends_up_with_the_truth(
        worlds in prop::collection::vec((world(), 0_u8..4), 1..12)
    ) {
        let (mut addresses, mut policies) = (BTreeMap::<String, String>::new(), BTreeMap::<String, String>::new());
        let mut session = both(&[], &[]);
        let mut unanswered: Vec<DeltaDiscoveryResponse> = Vec::new();
        let last = worlds.len() - 1;
        let mut before = Snapshot::default();
        for (at, (world, event)) in worlds.iter().enumerate() {
            let now = of_world(world, at as u64 + 1, &before);
            before = now.clone();
            match event {
                // It is slow: says nothing this time.
                0 if at != last => {}
                // The stream breaks; it comes back with what it has.
                1 => {
                    unanswered.clear();
                    session = Session::default();
                    let held = |map: &BTreeMap<String, String>| map.clone();
                    let mut request = subscribe(ADDRESS_TYPE, &[], &[]);
                    request.initial_resource_versions = held(&addresses);
                    session.request(request).expect("taken");
                    let mut request = subscribe(AUTHORIZATION_TYPE, &[], &[]);
                    request.initial_resource_versions = held(&policies);
                    session.request(request).expect("taken");
                }
                _ => {
                    for response in unanswered.drain(..) {
                        session.request(answer(&response, None)).expect("taken");
                    }
                }
            }
            if session.waits() {
                continue;
            }
            let round = said(&mut session, &now);
            let (mut then_addresses, mut then_policies) = (addresses.clone(), policies.clone());
            for response in &round {
                take(if response.type_url == ADDRESS_TYPE { &mut then_addresses } else { &mut then_policies }, response);
            }
            let then = in_force(&then_addresses, &then_policies);
            let always: Vec<_> = in_force(&addresses, &policies).intersection(&then).cloned().collect();
            for response in round {
                let held = if response.type_url == ADDRESS_TYPE { &mut addresses } else { &mut policies };
                for name in &response.removed_resources {
                    prop_assert!(held.contains_key(name), "{} was not there", name);
                }
                take(held, &response);
                let meanwhile = in_force(&addresses, &policies);
                for lasting in &always {
                    prop_assert!(meanwhile.contains(lasting), "{:?} was not in force for a moment", lasting);
                }
                for listed in addresses.values().flat_map(|list| list.split(',')).filter(|name| !name.is_empty()) {
                    prop_assert!(policies.contains_key(listed), "{} is listed and not there", listed);
                }
                unanswered.push(response);
            }
        }
        let truth = of_world(&worlds[last].0, 99, &Snapshot::default());
        let versions = |table: &Table| -> BTreeMap<String, String> {
            table.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
        };
        if !session.waits() || worlds[last].1 != 0 {
            prop_assert_eq!(addresses, versions(&truth.addresses));
            prop_assert_eq!(policies, versions(&truth.policies));
        }
    }
}

#[test]
fn what_is_asked_for_on_demand_ends_the_stream() {
    let asked = |subscribe_to: &[&str], unsubscribe: &[&str]| {
        let mut request = subscribe(ADDRESS_TYPE, subscribe_to, &[]);
        request.resource_names_unsubscribe = unsubscribe.iter().map(|name| (*name).to_owned()).collect();
        Session::default().request(request)
    };
    for (names, unsubscribe) in [
        (&["/198.18.1.3"][..], &[][..]),
        (&["network-1/198.18.1.3"], &[]),
        (&["/fd77::3"], &[]),
        (&["Kubernetes//Pod/shop/cart", "/198.18.128.9"], &[]),
        // "Nothing, until I ask": a ztunnel's first request on demand.
        (&["*"], &["*"]),
    ] {
        assert_eq!(asked(names, unsubscribe), Err(BadRequest::OnDemand), "{names:?}");
    }
    for names in [&["*"][..], &[], &["Kubernetes//Pod/shop/cart", "shop/cart.shop.svc.cluster.local"]] {
        assert_eq!(asked(names, &[]), Ok(Meaning::Subscribed), "{names:?}");
    }
}
