//! Rules of the release before stay as long as a worker of that release accepts connections: it knows where they want to go by the
//! kernel's translation alone, which rules of now do not make.

mod common;

use std::time::{Duration, Instant};

use common::keeper::{Answers, connected};
use common::{Node, Pod, eventually, within};
use mesh_net::capture::{Mode, Session, Stage};
use serde_json::json;

/// As a node that is upgraded finds them.
const RULES: &str = include_str!("../../mesh-net/tests/capture/schema2.nft");
/// The mark in them.
const MARK: &str = "0x12345678";
/// Two audits and a half.
const AUDITS: Duration = Duration::from_secs(8);

fn is_former(pod: &Pod) -> bool {
    let mut session = Session::open(&pod.netns, Mode::Plain).expect("session");
    session.read().expect("read");
    session.is_former()
}

fn nft(pod: &Pod, input: &str) {
    let ran = pod.netns.run(|| {
        let mut child =
            std::process::Command::new("nft").args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn()?;
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), input.as_bytes())?;
        child.wait()
    });
    assert!(ran.expect("entered").expect("nft ran").success(), "{input}");
}

#[test]
fn rules_of_the_release_before_give_way_when_its_keeper_leaves_and_no_sooner() {
    let mut node = Node::start(&["--table-mode", "plain"]);
    let mut pod = Pod::new("tools", "runner");
    node.manifest("runner", &pod.manifest(Some("enabled")));
    let keeper = connected(&node, Answers::Serve);
    assert!(node.add(&pod).0);
    pod.start_process();
    let served = |node: &Node, pod: &Pod| node.view(pod).is_some_and(|view| view["served"] == true);
    eventually("captured and served", || served(&node, &pod));
    let mark = pod.rules().and_then(|found| found.spec).expect("rules").mark.value();

    node.kill_watcher();
    nft(&pod, &format!("delete table inet culvert\n{}", RULES.replace(MARK, &format!("{mark:#x}"))));
    assert!(is_former(&pod) && pod.stage() == Some(Stage::Redirect));
    node.start_watcher();
    // It does not say that it knows rules of now.
    let keeper = keeper.again(&node, Answers::Serve);
    eventually("served", || served(&node, &pod));
    let begun = Instant::now();
    within(AUDITS * 2, "rules of the release before stay", || {
        assert!(is_former(&pod), "they gave way after {:?}: {}", begun.elapsed(), json!(node.view(&pod)));
        begun.elapsed() > AUDITS
    });
    keeper.leave();
    eventually("rules of now", || !is_former(&pod) && pod.stage() == Some(Stage::Redirect));
}
