//! A pod whose runtime gives it a kernel of its own: it starts, nothing of ours is in its network, and it is told so.

mod common;

use common::keeper::{Answers, connected};
use common::{Node, Pod, eventually};
use serde_json::{Value, json};

fn condition(node: &Node, pod: &Pod) -> Option<Value> {
    let bytes = std::fs::read(node.path("status/pods").join(format!("{}.json", pod.uid))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[test]
fn a_pod_with_a_kernel_of_its_own_starts_uncaptured_and_is_told_by_condition_and_event() {
    let mut node = Node::start(&["--uncaptured-runtime", "kata,own-vm"]);
    let keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "sealed");
    let mut manifest = pod.manifest(None);
    manifest["spec"]["runtimeClassName"] = json!("my-own-vm");
    node.manifest("sealed", &manifest);
    let (ok, answer, _) = node.add(&pod);
    assert!(ok, "{answer}");
    assert!(pod.rules().is_none() && keeper.adds() == 0);
    eventually("its condition", || condition(&node, &pod).is_some());
    let told = condition(&node, &pod).expect("told");
    assert_eq!((&told["enrolled"], &told["reason"]), (&json!(false), &json!("OtherKernel")), "{told}");
    let event = node.event("NotCaptured").expect("an Event");
    assert_eq!((&event["pod"], &event["type"]), (&json!("shop/sealed"), &json!("Warning")), "{event}");
    // One of another class is captured, and one that does not ask is not told anything.
    for (namespace, class, is_in) in [("shop", "kata-less", false), ("shop", "runc", true), ("tools", "kata", false)] {
        let pod = Pod::new(namespace, &format!("pod-{class}"));
        let mut manifest = pod.manifest(None);
        manifest["spec"]["runtimeClassName"] = json!(class);
        node.manifest(&pod.name, &manifest);
        assert!(node.add(&pod).0, "{class}");
        assert_eq!(pod.rules().is_some(), is_in, "{class}");
    }
    let told = node.events().iter().filter(|event| event["reason"] == "NotCaptured").count();
    assert_eq!(told, 2, "{:?}", node.events());
    // Who starts anew says it again: conditions of an earlier run are gone with that.
    node.kill_watcher();
    node.start_watcher();
    eventually("its condition, again", || condition(&node, &pod).is_some());
    // It goes, and with it what was said.
    std::fs::remove_file(node.path("source/sealed.json")).expect("removed");
    eventually("nothing is said of it", || condition(&node, &pod).is_none());
}
