//! Static pods: kubelet makes an object of another uid for each in the API, and calls them by a hash of their file. The real pod-watcher and
//! the real culvert-cni, with a keeper that does what the test says.

#![allow(clippy::print_stdout, reason = "figures are for whoever runs the tests")]

mod common;

use std::time::Duration;

use common::keeper::{Answers, connected};
use common::{Node, Pod, Seen, eventually, run, within};
use mesh_net::capture::Stage;
use serde_json::json;

#[test]
fn a_static_pod_is_added_by_the_uid_that_its_mirror_names() {
    let node = Node::start(&[]);
    let keeper = connected(&node, Answers::Serve);
    for (namespace, is_in) in [("tools", false), ("shop", true)] {
        let pod = Pod::new_static(namespace, "registry-n1");
        let uid = format!("{namespace}-mirror");
        node.manifest(namespace, &pod.mirror(&uid, &[], None));
        let (ok, answer, took) = node.add(&pod);
        assert!(ok, "{answer}");
        println!("figure: ADD of a static pod in {namespace}: {took:?}");
        assert_eq!(pod.stage(), is_in.then_some(Stage::Redirect));
        let told = keeper.seen().into_iter().find_map(|seen| match seen {
            Seen::Add { facts, .. } => Some(facts.uid),
            _ => None,
        });
        assert_eq!(told, is_in.then_some(uid), "the API's uid is what it is called by");
        assert!(node.cni("CHECK", &pod, json!({})).0);
        // Another pod's word about its uid brings nobody an attachment.
        let mut other = Pod::new(namespace, "other");
        node.manifest("other", &other.mirror("other-mirror", &[], None));
        other.uid.clone_from(&pod.uid);
        let (ok, error, _) = node.add(&other);
        assert!(!ok && error["msg"].as_str().is_some_and(|msg| msg.contains("and not with uid")), "{error}");
        node.del(&pod);
    }
    assert_eq!(node.admin(&["pods"])["pods"], json!([]));
}

#[test]
fn a_running_static_pod_is_adopted_by_its_mirror_and_by_no_pretender() {
    const ADDRESS: &str = "198.18.7.7";
    let mut node = Node::start(&[]);
    let with_process = |mut pod: Pod| {
        pod.netns.run(|| run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "lo"])).expect("entered");
        pod.start_process();
        pod
    };
    let mut pod = with_process(Pod::new_static("shop", "registry-n1"));
    node.manifest("registry", &pod.mirror("mirror-1", &[ADDRESS], None));
    let before = {
        let _keeper = connected(&node, Answers::Serve);
        assert!(node.add(&pod).0);
        pod.rules().and_then(|found| found.spec).expect("in force")
    };
    // One that has no record (any more), and one that has: whoever may make pods in an enrolled namespace says that he is either's mirror.
    let (unknown, known) = (with_process(Pod::new("shop", "unknown")), with_process(Pod::new("tools", "known")));
    node.manifest("known", &known.manifest(None));
    for (name, claimed, addresses) in
        [("early", &pod, &[][..]), ("thief", &unknown, &[]), ("usurper", &known, &[ADDRESS])]
    {
        let mut pretender = Pod::new("shop", name);
        pretender.uid.clone_from(&claimed.uid);
        // Sorts before the true one.
        node.manifest(name, &pretender.mirror(&format!("a-{name}"), addresses, None));
    }
    node.kill_watcher();
    node.start_watcher();
    let keeper = connected(&node, Answers::Serve);
    let uids = || -> Vec<String> {
        let all = node.admin(&["pods"]);
        let all = all["pods"].as_array().expect("list");
        all.iter().filter(|one| one["served"] == true).map(|one| one["uid"].as_str().expect("uid").to_owned()).collect()
    };
    eventually("served again, it alone", || uids() == ["mirror-1"]);
    assert_eq!(pod.rules().and_then(|found| found.spec), Some(before));
    assert!(unknown.rules().is_none() && known.rules().is_none());
    // Its mirror is deleted: kubelet makes another one, and the pod runs on.
    node.manifest("registry", &pod.mirror("mirror-2", &[ADDRESS], None));
    eventually("served as what it is called by now", || uids() == ["mirror-2"]);
    assert_eq!(pod.rules().and_then(|found| found.spec), Some(before));
    assert_eq!(keeper.adds(), 2);
    // Its DEL is by a container that this pod-watcher does not know, and by kubelet's uid.
    pod.end_process();
    node.del(&pod);
    within(Duration::from_secs(10), "let go of", || node.admin(&["pods"])["pods"] == json!([]));
}
