//! Plans carried out on directories that are maps, step by step and with the power cut between any two.

use proptest::prelude::*;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#;

fn entry() -> Entry {
    Entry::new("/run/culvert/cni.sock".into(), 15, Vec::new(), "/var/lib/culvert/cni".into())
}

fn dir(files: &[(&str, &str)]) -> Files {
    files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
}

/// What the disk makes of a step; `false` when its file is not what it was.
fn carry_out(files: &mut Files, step: &Step) -> bool {
    let said = |files: &Files, name: &str| files.get(name).and_then(|text| text.as_ref().ok()).cloned();
    match step {
        Step::Write { name, before, text } => {
            let is = said(files, name) == *before;
            if is {
                files.insert(name.clone(), Ok(text.clone()));
            }
            is
        }
        Step::Rename { name, before, to } => {
            let is = said(files, name).as_ref() == Some(before);
            if is && let Some(text) = files.remove(name) {
                files.insert(to.clone(), text);
            }
            is
        }
        Step::Remove { name, before } => {
            let is = said(files, name).as_ref() == Some(before);
            if is {
                files.remove(name);
            }
            is
        }
    }
}

/// Until there is nothing to do.
fn settle(files: &mut Files, plan: impl Fn(&Files) -> Plan) -> Plan {
    for _ in 0..8 {
        let now = plan(files);
        if now.steps.is_empty() {
            return now;
        }
        for step in &now.steps {
            assert!(carry_out(files, step), "{step:?} in {files:?}");
            assert!(usable(files), "no network after {step:?}: {files:?}");
        }
    }
    panic!("no end: {files:?}");
}

/// Whether the runtime can use this file.
fn fits(name: &str, text: &Result<String, String>) -> bool {
    let Ok(text) = text else { return false };
    if is_single(name) { list_of(text, &entry()).is_ok() } else { is_live(name) && List::read(text).is_ok() }
}

/// Whether the runtime finds a configuration.
fn usable(files: &Files) -> bool {
    files.iter().any(|(name, text)| fits(name, text))
}

fn installed(files: &mut Files) -> Plan {
    settle(files, |files| put(files, &entry()))
}

#[test]
fn the_first_by_name_gets_it_and_no_other() {
    let mut files =
        dir(&[("20-b.conflist", LIST), ("10-a.conflist", LIST), ("05-note.txt", "x"), ("87-z.conf", SINGLE)]);
    let before = files.clone();
    assert_eq!(installed(&mut files).chain, Chain::In("10-a.conflist".to_owned()));
    assert!(files["10-a.conflist"].as_ref().expect("a text").contains("culvert-cni"));
    assert_eq!(files.iter().filter(|(name, text)| before.get(*name) != Some(text)).count(), 1);
    settle(&mut files, take_out);
    assert_eq!(files, before);
}

#[test]
fn a_single_configuration_becomes_a_list_and_comes_back_as_it_was() {
    for name in ["10-a.conf", "10-a.json"] {
        let mut files = dir(&[(name, SINGLE), ("99-loopback.conf", SINGLE)]);
        let before = files.clone();
        assert_eq!(installed(&mut files).chain, Chain::In("10-a.conflist".to_owned()));
        assert!(!files.contains_key(name), "it would come before the list");
        assert_eq!(files[&format!("{name}{KEPT}")], Ok(SINGLE.to_owned()));
        settle(&mut files, take_out);
        assert_eq!(files, before);
    }
}

#[test]
fn its_owner_may_write_it_anew_in_whatever_form() {
    let fresh = SINGLE.replace("ptp", "macvlan");
    // The single one again: converted again.
    let mut files = dir(&[("10-a.conf", SINGLE)]);
    installed(&mut files);
    files.insert("10-a.conf".to_owned(), Ok(fresh.clone()));
    installed(&mut files);
    assert!(files["10-a.conflist"].as_ref().expect("a text").contains("macvlan"));
    let put_anew = files.clone();
    settle(&mut files, take_out);
    assert_eq!(files, dir(&[("10-a.conf", &fresh)]));
    // The single one again, a moment before the uninstall.
    let mut files = put_anew;
    files.insert("10-a.conf".to_owned(), Ok(SINGLE.to_owned()));
    settle(&mut files, take_out);
    assert_eq!(files, dir(&[("10-a.conf", SINGLE)]));
    // A list of its own under the name of ours: what was kept is of no use any more.
    let mut files = dir(&[("10-a.conf", SINGLE)]);
    installed(&mut files);
    files.insert("10-a.conflist".to_owned(), Ok(LIST.to_owned()));
    installed(&mut files);
    settle(&mut files, take_out);
    assert_eq!(files, dir(&[("10-a.conflist", LIST)]));
    // A list written anew without ours.
    let mut files = dir(&[("10-a.conflist", LIST)]);
    installed(&mut files);
    files.insert("10-a.conflist".to_owned(), Ok(LIST.replace("bridge", "ptp")));
    installed(&mut files);
    settle(&mut files, take_out);
    assert_eq!(files, dir(&[("10-a.conflist", &LIST.replace("bridge", "ptp"))]));
}

#[test]
fn where_the_owner_has_broken_his_single_configuration_the_list_stays_without_ours() {
    let mut files = dir(&[("10-a.conf", SINGLE)]);
    installed(&mut files);
    files.insert("10-a.conf".to_owned(), Ok("{".to_owned()));
    settle(&mut files, take_out);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["10-a.conf", "10-a.conflist"]);
    let list = files["10-a.conflist"].as_ref().expect("a text");
    assert!(list.contains("ptp") && !list.contains("culvert"), "{list}");
}

#[test]
fn what_nobody_can_use_is_named_and_passed_over_and_what_the_runtime_uses_is_not() {
    let old = LIST.replace("1.0.0", "0.2.0");
    let table = [
        (dir(&[]), Err("no network is configured yet"), 0),
        (dir(&[("00-x.conflist", "{"), ("05-y.conf", ""), ("10-a.conflist", LIST)]), Ok("10-a.conflist"), 2),
        (dir(&[("00-x.conflist", &old), ("10-a.conflist", LIST)]), Err("00-x.conflist is in use: cniVersion"), 1),
        (dir(&[("10-a.conf", SINGLE), ("10-a.conflist", LIST)]), Err("10-a.conflist stands beside it"), 1),
        (dir(&[("10-a.conf", SINGLE), ("10-a.confl.conf", SINGLE)]), Err("10-a.confl.conf would come before"), 1),
    ];
    for (mut files, chain, left) in table {
        let before = files.clone();
        let plan = installed(&mut files);
        match (&plan.chain, chain) {
            (Chain::In(name), Ok(wanted)) => assert_eq!(name, wanted),
            (Chain::Out(why), Err(wanted)) => {
                assert!(why.contains(wanted), "{why}");
                assert_eq!(files, before);
            }
            (chain, wanted) => panic!("{chain:?} instead of {wanted:?}"),
        }
        assert_eq!(plan.left.len(), left, "{:?}", plan.left);
    }
    let mut files = dir(&[("10-a.conflist", LIST)]);
    files.insert("00-link.conflist".to_owned(), Err("it is a symbolic link".to_owned()));
    assert!(matches!(put(&files, &entry()).chain, Chain::Out(why) if why.contains("symbolic link")));
}

/// What may happen to the directory.
#[derive(Clone, Debug)]
enum Op {
    /// So many steps of a plan to put ours in, then the power goes.
    Put(usize),
    TakeOut(usize),
    Owner(&'static str, &'static str),
    OwnerRemoves(&'static str),
}

fn op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["10-a.conf", "10-a.conflist", "10-a.json", "20-b.conflist"]);
    let text = prop::sample::select(vec![LIST, SINGLE, "{", r#"{"cniVersion":"0.4.0","name":"m","type":"x"}"#]);
    prop_oneof![
        (0..4_usize).prop_map(Op::Put),
        (0..4_usize).prop_map(Op::TakeOut),
        (name.clone(), text).prop_map(|(name, text)| Op::Owner(name, text)),
        name.prop_map(Op::OwnerRemoves),
    ]
}

proptest! {
    #[test]
    fn whatever_happened_an_end_is_reached_both_ways_and_nothing_of_ours_is_left(
        ops in prop::collection::vec(op(), 0..12),
    ) {
        let mut files = Files::new();
        for op in ops {
            let plan = match op {
                Op::Put(cut) => Some((put(&files, &entry()), cut)),
                Op::TakeOut(cut) => Some((take_out(&files), cut)),
                Op::Owner(name, text) => {
                    files.insert(name.to_owned(), Ok(text.to_owned()));
                    None
                }
                Op::OwnerRemoves(name) => {
                    files.remove(name);
                    None
                }
            };
            if let Some((plan, cut)) = plan {
                let was = usable(&files);
                for step in plan.steps.iter().take(cut) {
                    prop_assert!(carry_out(&mut files, step));
                    prop_assert!(usable(&files) || !was, "{step:?} took the network away: {files:?}");
                }
            }
        }
        let mut put_in = files.clone();
        let plan = settle_any(&mut put_in, |files| put(files, &entry()));
        if let Chain::In(name) = &plan.chain {
            let list = List::read(put_in[name].as_ref().expect("a text")).expect("a list");
            prop_assert!(list.has_ours());
            let first = put_in.iter().find(|(name, text)| fits(name, text));
            prop_assert_eq!(first.map(|(name, _)| name), Some(name), "the runtime uses another");
        }
        settle_any(&mut put_in, take_out);
        for (name, text) in &put_in {
            prop_assert!(!text.as_ref().is_ok_and(|text| text.contains("culvert")), "{name}: {text:?}");
            prop_assert!(!name.ends_with(KEPT), "{name}");
        }
    }
}

/// As [`settle`], where there may have been no network before.
fn settle_any(files: &mut Files, plan: impl Fn(&Files) -> Plan) -> Plan {
    for _ in 0..8 {
        let now = plan(files);
        if now.steps.is_empty() {
            return now;
        }
        for step in &now.steps {
            assert!(carry_out(files, step), "{step:?} in {files:?}");
        }
    }
    panic!("no end: {files:?}");
}
