//! The real pod-watcher and the real culvert-cni on a node in a netns, with a keeper that does what the test says.

#![allow(clippy::print_stdout, reason = "figures are for whoever runs the tests")]

mod common;

use std::time::{Duration, Instant};

use common::keeper::{Answers, connected};
use common::{Node, Pod, Seen, eventually, ip_batch, run, within};
use mesh_net::capture::{ROUTE_TABLES, RULE_PRIORITY, Stage};
use serde_json::json;

#[test]
fn an_add_is_denied_then_served_then_redirected_then_answered() {
    let node = Node::start(&[]);
    let keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    let (ok, answer, took) = node.add(&pod);
    println!("figure: ADD by culvert-cni, pod-watcher and a keeper that answers at once: {took:?}");
    assert!(ok, "{answer}");
    assert_eq!(answer["ips"][1]["address"], "fd77:0:0:1::2/64");
    // Told while deny was in force, with what the CNI said and the record says.
    let adds: Vec<_> = keeper.seen().into_iter().filter(|seen| matches!(seen, Seen::Add { .. })).collect();
    let [Seen::Add { pod: name, facts, in_force }] = adds.as_slice() else { panic!("{adds:?}") };
    assert_eq!((name.as_str(), *in_force), ("shop/cart", Some(Stage::Deny)));
    assert_eq!(
        (facts.service_account.as_str(), facts.probe_ports.as_slice(), facts.addresses.len()),
        ("buyer", [8080].as_slice(), 2)
    );
    // And redirect is what is in force when the answer is out, under the mark that the keeper was told.
    let found = pod.rules().expect("rules");
    let spec = found.spec.expect("understood");
    assert_eq!((spec.stage, spec.mark.value()), (Stage::Redirect, facts.mark));
    let view = node.view(&pod).expect("known");
    assert_eq!((view["rules"].as_str(), view["served"].as_bool()), (Some("redirect"), Some(true)));
    let condition = std::fs::read_to_string(node.path(&format!("status/pods/{}.json", pod.uid))).expect("condition");
    let condition: serde_json::Value = serde_json::from_str(&condition).expect("JSON");
    assert_eq!(condition["enrolled"], true);
    let (ok, answer, _) = node.cni("CHECK", &pod, json!({}));
    assert!(ok, "{answer}");
    // Again: the same answer, and nothing is written.
    assert!(node.add(&pod).0);
    assert_eq!(pod.rules().and_then(|found| found.spec).map(|spec| spec.generation), Some(spec.generation));
    node.del(&pod);
    eventually("the keeper is told", || {
        keeper.seen().iter().any(|seen| matches!(seen, Seen::Del { drain: false, .. }))
    });
    assert!(node.view(&pod).is_none());
}

#[test]
fn an_address_that_the_chain_gives_the_node_is_known_before_the_pod_is_served() {
    let node = Node::start(&[]);
    let keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    // Builds the plugin; what follows is faster than the timer behind it.
    assert!(node.add(&Pod::new("kube-system", "proxy")).0);
    // As the bridge plugin does for the first pod.
    node.netns.run(|| run("ip", &["address", "add", "198.18.1.1/24", "dev", "lo"])).expect("entered");
    assert!(node.add(&pod).0);
    let seen = keeper.seen();
    let served = seen.iter().position(|seen| matches!(seen, Seen::Add { .. })).expect("told");
    assert!(seen[..served].contains(&Seen::Node(1)), "{seen:?}");
}

#[test]
fn a_node_with_the_addresses_of_many_services_keeps_its_keeper() {
    // All of them would be more than a socket takes in one packet.
    const MANY: usize = 10_000;
    let add = |device: &str, net: u8| {
        let line = |number: usize| format!("address add {net}.96.{}.{}/32 dev {device}\n", number / 256, number % 256);
        ip_batch(&(0..MANY).map(line).collect::<String>());
    };
    let node = Node::start_with(&[], |node| {
        let prepare = || {
            run("ip", &["address", "add", "198.18.1.1/24", "dev", "lo"]);
            run("ip", &["link", "add", "kube-ipvs0", "type", "bridge"]);
            add("kube-ipvs0", 10);
        };
        node.netns.run(prepare).expect("entered");
        Vec::new()
    });
    let keeper = connected(&node, Answers::Serve);
    assert_eq!(keeper.seen().first(), Some(&Seen::Node(1)), "Services' addresses are nobody's source");
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    // As many that are not Services'.
    node.netns.run(|| add("lo", 11)).expect("entered");
    eventually("the keeper is told of some", || {
        keeper.seen().iter().any(|seen| matches!(seen, Seen::Node(told) if *told > 1000))
    });
    let next = Pod::new("shop", "next");
    node.manifest("next", &next.manifest(None));
    let (ok, answer, took) = node.add(&next);
    println!("figure: ADD on a node with {} addresses: {took:?}", 2 * MANY);
    assert!(ok, "{answer}");
    assert_eq!(keeper.adds(), 2);
    let told: Vec<_> =
        node.log().lines().filter(|line| line.contains("more addresses of the node")).map(str::to_owned).collect();
    assert_eq!(told.len(), 1, "once: {told:?}");
}

#[test]
fn two_hundred_pods_come_and_go_and_leave_nothing() {
    const PODS: usize = 200;
    let node = Node::start(&[]);
    let _keeper = connected(&node, Answers::Serve);
    let before = node.usage();
    let pods: Vec<Pod> = (0..PODS).map(|number| Pod::new("shop", &format!("p{number}"))).collect();
    for pod in &pods {
        node.manifest(&pod.name, &pod.manifest(None));
    }
    let mut took: Vec<Duration> = pods
        .iter()
        .map(|pod| {
            let (ok, answer, took) = node.add(pod);
            assert!(ok, "{answer}");
            took
        })
        .collect();
    took.sort();
    println!(
        "figure: {PODS} ADDs one after the other, plugin's wall time: p50 {:?}, p99 {:?}",
        took[PODS / 2],
        took[PODS * 99 / 100]
    );
    let (full, begun) = (node.usage(), Instant::now());
    within(Duration::from_secs(20), "audited three times over", || begun.elapsed() > Duration::from_secs(9));
    let later = node.usage();
    println!(
        "figure: with {PODS} pods: {} descriptors, {} KiB resident ({} KiB before), {:.1} ms CPU a second for audits",
        full.descriptors.values().sum::<usize>(),
        full.resident_kib,
        before.resident_kib,
        (later.cpu - full.cpu).as_secs_f64() * 1000.0 / begun.elapsed().as_secs_f64(),
    );
    assert!(node.event("RulesChanged").is_none(), "our own changes were taken for somebody else's");
    pods.iter().for_each(|pod| node.del(pod));
    assert_eq!(node.admin(&["pods"])["pods"], json!([]));
    let mut more = Vec::new();
    let back = || {
        let now = node.usage().descriptors;
        more = now.into_iter().filter(|(kind, count)| count > before.descriptors.get(kind).unwrap_or(&0)).collect();
        more.is_empty()
    };
    let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("descriptors are as before", back)));
    assert!(came.is_ok(), "more than before: {more:?}, before: {:?}", before.descriptors);
}

#[test]
fn a_stop_is_quick_and_leaves_rules_in_place() {
    let mut node = Node::start(&[]);
    let _keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    let mut child = node.watcher.take().expect("running");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("asked");
    let took = within(Duration::from_secs(2), "ended", || child.try_wait().expect("status").is_some());
    println!("figure: pod-watcher stops in {took:?}");
    assert!(child.wait().expect("status").success());
    assert_eq!(pod.stage(), Some(Stage::Redirect));
    assert!(!node.path("run/cni.sock").exists() && !node.path("run/proxy.sock").exists());
}

#[test]
fn a_successor_keeper_serves_as_soon_as_its_predecessor_lets_go() {
    let node = Node::start(&[]);
    let first = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    let second = connected(&node, Answers::Serve);
    assert_eq!(second.adds(), 1);
    assert!(node.view(&pod).is_some_and(|view| view["served"] == true), "the first goes on serving");
    drop(first);
    let took = within(Duration::from_secs(2), "served by the second", || {
        second.adds() >= 2 && node.view(&pod).is_some_and(|view| view["served"] == true)
    });
    println!("figure: served by the successor {took:?} after its predecessor went");
}

#[test]
fn an_add_fails_and_deny_stays_when_the_pod_cannot_be_served() {
    for (answers, text) in [(Answers::Refuse, "15001 is taken"), (Answers::Lie, "not all of its listeners")] {
        let node = Node::start(&[]);
        let _keeper = connected(&node, answers);
        let pod = Pod::new("shop", "cart");
        node.manifest("cart", &pod.manifest(None));
        let (ok, error, _) = node.add(&pod);
        assert!(!ok);
        let msg = error["msg"].as_str().expect("text");
        assert!(msg.contains("shop/cart") && msg.contains(text), "{error}");
        assert!(error["details"].as_str().is_some_and(|details| !details.is_empty()));
        assert_eq!(pod.stage(), Some(Stage::Deny));
    }
}

#[test]
fn an_add_without_a_keeper_fails_in_time_and_names_what_is_missing() {
    let node = Node::start(&[]);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    let (ok, error, took) = node.add(&pod);
    assert!(!ok && took < Duration::from_secs(15), "{took:?}");
    assert_eq!(error["code"], 11);
    assert!(error["msg"].as_str().expect("text").contains("no node-proxy"), "{error}");
    assert_eq!(pod.stage(), Some(Stage::Deny));
}

#[test]
fn an_add_of_an_unknown_pod_waits_for_its_record() {
    let node = Node::start(&[]);
    let _keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "late");
    std::thread::scope(|scope| {
        let add = scope.spawn(|| node.add(&pod));
        eventually("the ADD waits", || node.log().contains("ADD waits for the pod's record"));
        node.manifest("late", &pod.manifest(None));
        let (ok, answer, _) = add.join().expect("no panic");
        assert!(ok, "{answer}");
    });
    let stranger = Pod::new("shop", "stranger");
    let (ok, error, took) = node.add(&stranger);
    assert!(!ok && took < Duration::from_secs(7));
    assert!(error["msg"].as_str().expect("text").contains("knows no such pod on node n1"), "{error}");
}

#[test]
fn a_killed_watcher_adopts_what_is_in_force_and_the_mark_stays() {
    let mut node = Node::start(&[]);
    let mut pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    pod.netns.run(|| run("ip", &["address", "add", "198.18.7.7/24", "dev", "lo"])).expect("entered");
    let before = {
        let keeper = connected(&node, Answers::Serve);
        assert!(node.add(&pod).0);
        pod.start_process();
        node.kill_watcher();
        drop(keeper);
        pod.rules().and_then(|found| found.spec).expect("outlives pod-watcher")
    };
    assert_eq!(before.stage, Stage::Redirect);
    node.start_watcher();
    let keeper = connected(&node, Answers::Serve);
    let adds: Vec<_> = keeper.seen().into_iter().filter(|seen| matches!(seen, Seen::Add { .. })).collect();
    let [Seen::Add { facts, in_force, .. }] = adds.as_slice() else { panic!("{adds:?}") };
    assert_eq!((facts.mark, *in_force), (before.mark.value(), Some(Stage::Redirect)));
    // Its record names no address yet, and the CNI call is long over.
    assert_eq!(facts.addresses, [std::net::IpAddr::from([198, 18, 7, 7])]);
    eventually("served again", || node.view(&pod).is_some_and(|view| view["served"] == true));
    assert_eq!(pod.rules().and_then(|found| found.spec), Some(before));
    assert!(node.event("Adopted").is_some());
    // Its DEL is by a container that the new pod-watcher does not know: it counts once the processes are gone.
    node.del(&pod);
    assert!(node.view(&pod).is_some());
    pod.end_process();
    node.del(&pod);
    let took = within(Duration::from_secs(10), "let go of", || node.view(&pod).is_none());
    println!("figure: a gone pod is let go of after {took:?}");
}

#[test]
fn rules_that_others_change_are_repaired_and_their_name_is_told() {
    let node = Node::start(&["--table-mode", "plain"]);
    let _keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    let (pref, table) = (RULE_PRIORITY.to_string(), ROUTE_TABLES.start().to_string());
    let cases: [(&str, &[&str]); 8] = [
        ("nft", &["delete", "table", "inet", "culvert"]),
        ("nft", &["flush", "table", "inet", "culvert"]),
        ("nft", &["flush", "chain", "inet", "culvert", "prerouting_nat"]),
        ("nft", &["insert", "rule", "inet", "culvert", "prerouting_filter", "accept"]),
        ("ip", &["rule", "del", "pref", &pref]),
        ("ip", &["-6", "rule", "del", "pref", &pref]),
        ("ip", &["route", "flush", "table", &table]),
        ("ip", &["-6", "route", "flush", "table", &table]),
    ];
    for (number, (program, args)) in cases.iter().enumerate() {
        pod.netns.run(|| run(program, args)).expect("entered");
        let intact = || pod.rules().is_some_and(|found| found.spec.is_some() && found.drift.is_empty());
        let took = within(Duration::from_secs(5), "repaired", || {
            let repaired = node.events().iter().filter(|event| event["reason"] == "RulesRepaired").count();
            repaired > number && intact()
        });
        println!("figure: repaired {took:?} after {program} {}", args.join(" "));
    }
    let event = node.event("RulesChanged").expect("evented");
    assert!(event["message"].as_str().is_some_and(|message| !message.is_empty()), "{event}");
    let named = node
        .events()
        .iter()
        .any(|event| event["message"].as_str().is_some_and(|message| message.contains("changed by nft")));
    assert!(named, "{:?}", node.events());
}

#[test]
fn owned_tables_withstand_others() {
    let node = Node::start(&[]);
    if !node.log().contains("mode=Owned") {
        // The kernel is too old for them; then the plain mode is tried by the test above.
        return println!("no owned tables on this kernel");
    }
    let _keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    pod.netns.run(|| run("nft", &["flush", "ruleset"])).expect("entered");
    let deleted =
        pod.netns.run(|| std::process::Command::new("nft").args(["delete", "table", "inet", "culvert"]).output());
    assert!(!deleted.expect("entered").expect("runs").status.success(), "an owned table was deleted");
    assert_eq!(pod.stage(), Some(Stage::Redirect));
}

#[test]
fn with_the_watcher_dead_a_namespace_outside_the_mesh_passes_and_one_inside_waits() {
    let mut node = Node::start(&[]);
    eventually("the namespaces are written", || node.path("state/namespaces").exists());
    node.kill_watcher();
    for namespace in ["kube-system", "tools", "culvert-system"] {
        let pod = Pod::new(namespace, "p");
        let (ok, answer, took) = node.cni("ADD", &pod, json!({ "excludeNamespaces": [] }));
        assert!(ok, "{answer}");
        println!("figure: ADD in {namespace} with pod-watcher dead: {took:?}");
        assert!(took < Duration::from_millis(100), "{namespace}: {took:?}");
        assert!(node.path(&format!("state/pending/{}@eth0.json", pod.container)).exists());
    }
    for namespace in ["shop", "unknown"] {
        let pod = Pod::new(namespace, "p");
        let (ok, error, took) = node.cni("ADD", &pod, json!({ "timeoutSeconds": 2 }));
        assert!(!ok && error["code"] == 11, "{error}");
        assert!((Duration::from_millis(1500)..Duration::from_secs(3)).contains(&took), "{took:?}");
        let msg = error["msg"].as_str().expect("text");
        assert!(msg.contains(&format!("{namespace}/p")) && msg.contains("pod-watcher"), "{msg}");
        // Nothing keeps a pod from going away.
        let (ok, answer, _) = node.cni("DEL", &pod, json!({ "timeoutSeconds": 2 }));
        assert!(ok && answer.is_null(), "{answer}");
    }
    node.start_watcher();
    let pending = || std::fs::read_dir(node.path("state/pending")).expect("listed").count();
    eventually("the markers are worked off", || pending() == 0);
}

#[test]
fn an_add_that_meets_a_restart_of_the_watcher_works() {
    let mut node = Node::start(&[]);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    node.kill_watcher();
    std::thread::scope(|scope| {
        let (runtime, pod) = (node.caller(), &pod);
        let add = scope.spawn(move || runtime.cni("ADD", pod, json!({})));
        eventually("the plugin runs", common::plugin_runs);
        node.start_watcher();
        let _keeper = connected(&node, Answers::Serve);
        let (ok, answer, took) = add.join().expect("no panic");
        assert!(ok, "{answer}");
        println!("figure: ADD across a restart of pod-watcher: {took:?}");
    });
}

#[test]
fn a_label_enrols_a_running_pod_without_deny_and_takes_it_out_again() {
    let node = Node::start(&["--linger-seconds", "1"]);
    let keeper = connected(&node, Answers::Serve);
    let mut pod = Pod::new("tools", "runner");
    node.manifest("runner", &pod.manifest(None));
    let (ok, answer, _) = node.add(&pod);
    assert!(ok, "{answer}");
    pod.start_process();
    assert!(pod.rules().is_none());
    node.manifest("runner", &pod.manifest(Some("enabled")));
    let took =
        within(Duration::from_secs(10), "enrolled", || node.view(&pod).is_some_and(|view| view["served"] == true));
    println!("figure: running pod enrolled {took:?} after its label");
    let adds: Vec<_> = keeper.seen().into_iter().filter(|seen| matches!(seen, Seen::Add { .. })).collect();
    let [Seen::Add { in_force: None, .. }] = adds.as_slice() else { panic!("a running pod was denied: {adds:?}") };
    assert_eq!(pod.stage(), Some(Stage::Redirect));
    node.manifest("runner", &pod.manifest(Some("disabled")));
    eventually("taken out", || keeper.seen().iter().any(|seen| matches!(seen, Seen::Del { .. })));
    let dels: Vec<_> = keeper.seen().into_iter().filter(|seen| matches!(seen, Seen::Del { .. })).collect();
    let [Seen::Del { drain: true, in_force, .. }] = dels.as_slice() else { panic!("{dels:?}") };
    assert_eq!(*in_force, Some(Stage::Drain), "new connections pass before listeners close");
    eventually("nothing of ours is left", || pod.rules().is_none() && node.view(&pod).is_none());
}

#[test]
fn a_pod_that_ended_while_the_watcher_was_dead_is_let_go_of() {
    let mut node = Node::start(&[]);
    let mut pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    {
        let _keeper = connected(&node, Answers::Serve);
        assert!(node.add(&pod).0);
    }
    pod.start_process();
    node.kill_watcher();
    let (ok, _, took) = node.cni("DEL", &pod, json!({}));
    assert!(ok);
    println!("figure: DEL with pod-watcher dead: {took:?}");
    node.start_watcher();
    pod.end_process();
    within(Duration::from_secs(10), "let go of", || node.view(&pod).is_none());
    eventually("marker worked off", || std::fs::read_dir(node.path("state/pending")).expect("listed").count() == 0);
}

#[test]
fn a_keeper_that_comes_back_gets_a_snapshot_with_every_pod_and_sock_diag_sockets() {
    let node = Node::start(&[]);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    {
        let _first = connected(&node, Answers::Serve);
        assert!(node.add(&pod).0);
    }
    eventually("not served", || node.view(&pod).is_some_and(|view| view["served"] == false));
    assert_eq!(pod.stage(), Some(Stage::Redirect), "closed, not open");
    let second = connected(&node, Answers::Serve);
    assert_eq!(second.adds(), 1);
    eventually("served", || node.view(&pod).is_some_and(|view| view["served"] == true));
    second.want_diag(4);
    eventually("sock_diag sockets", || second.seen().contains(&Seen::Diag(4)));
}

#[test]
fn gc_lets_go_of_what_is_no_longer_valid_and_a_missing_list_of_nothing() {
    let node = Node::start(&[]);
    let _keeper = connected(&node, Answers::Serve);
    let pod = Pod::new("shop", "cart");
    node.manifest("cart", &pod.manifest(None));
    assert!(node.add(&pod).0);
    let (ok, answer, _) = node.cni("GC", &pod, json!({ "cniVersion": "1.1.0" }));
    assert!(ok && answer.is_null(), "{answer}");
    assert!(node.view(&pod).is_some());
    let keep = json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [{ "containerID": pod.container, "ifname": "eth0" }] });
    assert!(node.cni("GC", &pod, keep).0);
    assert!(node.view(&pod).is_some());
    assert!(node.cni("GC", &pod, json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] })).0);
    eventually("let go of", || node.view(&pod).is_none());
}

#[test]
fn the_daemon_holds_three_capabilities_and_no_new_privileges() {
    let node = Node::start(&[]);
    let pid = node.watcher.as_ref().expect("running").id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("procfs");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
    };
    // SYS_PTRACE (19), SYS_ADMIN (21), NET_ADMIN (12)
    let kept = format!("{:016x}", (1_u64 << 19) | (1 << 21) | (1 << 12));
    assert_eq!([field("CapPrm:"), field("CapEff:"), field("CapBnd:")], [kept.clone(), kept.clone(), kept]);
    assert_eq!((field("CapInh:"), field("NoNewPrivs:")), ("0".repeat(16), "1".to_owned()));
}

#[test]
fn a_second_watcher_of_the_node_refuses_to_start() {
    let node = Node::start(&[]);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pod-watcher"))
        .args(["--node-name", "n1", "--metrics-address", "127.0.0.1:0", "--source"])
        .arg(node.path("source"))
        .arg("--cni-socket")
        .arg(node.path("run/cni.sock"))
        .arg("--proxy-socket")
        .arg(node.path("run/other.sock"))
        .arg("--admin-socket")
        .arg(node.path("run/other-admin.sock"))
        .output()
        .expect("runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another pod-watcher runs on this node"));
}
