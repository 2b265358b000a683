//! The real pod-watcher puts the plugin into the node's CNI chain, keeps it there, and takes it out when it goes for good.

#![allow(clippy::print_stdout, reason = "figures are for whoever runs the tests")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::api::node_with;
use common::{Node, eventually, plugin, within};
use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const SETS: &str = "/apis/apps/v1/daemonsets";
const TAINT: &str = "culvert.io/not-ready";
const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    { \"type\": \"bridge\", \"mtu\": 1.5e3 }\n  ],\n  \"x-owner\": 1.0\n}\n";
const SINGLE: &str = "{\"type\": \"ptp\", \"name\": \"net\", \"cniVersion\": \"0.4.0\"}\n";

/// A node whose only network configuration is this file.
struct Chained {
    node: Node,
    fake: Fake,
}

impl Chained {
    fn new(loopback: &'static str, file: &str, text: &str) -> Self {
        let (node, fake) = node_with(loopback, &[], |node, fake| {
            for dir in ["net.d", "bin"] {
                std::fs::create_dir(node.path(dir)).expect("directory");
            }
            std::fs::write(node.path("net.d").join(file), text).expect("written");
            fake.put(Kind::Node, node_object(&json!([{"key": TAINT, "effect": "NoSchedule"}, {"key": "other"}])));
            fake.put_in(SETS, set(json!({"os": "linux"})));
            let flags = [
                ("--cni-conf-dir", node.path("net.d")),
                ("--cni-bin-dir", node.path("bin")),
                ("--cni-plugin", plugin().to_owned()),
                ("--daemon-set", "watcher".into()),
            ];
            flags
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value.to_string_lossy().into_owned()])
                .collect()
        });
        Self { node, fake }
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.node.path("net.d").join(name)).ok()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.node.path("net.d").join(name), text).expect("written");
    }

    fn is_in(&self, name: &str) -> bool {
        self.file(name).is_some_and(|text| text.contains("culvert-cni"))
    }

    /// Names of all files, of both directories.
    fn files(&self) -> Vec<String> {
        let list = |dir: &str| std::fs::read_dir(self.node.path(dir)).expect("listed").filter_map(Result::ok);
        let mut names: Vec<String> = list("net.d")
            .map(|entry| format!("net.d/{}", entry.file_name().to_string_lossy()))
            .chain(list("bin").map(|entry| format!("bin/{}", entry.file_name().to_string_lossy())))
            .collect();
        names.sort();
        names
    }

    fn taints(&self) -> Vec<String> {
        let node = self.fake.object(Kind::Node, "", "n1").expect("the node");
        let taints = node.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
        taints.iter().map(|taint| taint["key"].as_str().expect("a key").to_owned()).collect()
    }

    /// SIGTERM, as kubelet does, until it has ended.
    fn stop(&mut self) {
        let mut child = self.node.watcher.take().expect("running");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
        kill_process(pid, Signal::TERM).expect("asked");
        let took = within(Duration::from_secs(20), "it ends", || child.try_wait().expect("status").is_some());
        println!("figure: pod-watcher ends {took:?} after SIGTERM");
    }

    /// `pod-watcher uninstall`, by hand.
    fn uninstall(&self) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pod-watcher"));
        command.arg("uninstall");
        let places = [
            ("cni-conf-dir", "net.d"),
            ("cni-bin-dir", "bin"),
            ("cni-socket", "run/cni.sock"),
            ("state-dir", "state"),
            ("status-dir", "status"),
        ];
        for (flag, name) in places {
            command.arg(format!("--{flag}")).arg(self.node.path(name));
        }
        command.output().expect("runs")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.node.path("log")).expect("log")
    }
}

fn node_object(taints: &Value) -> Value {
    json!({"metadata": {"name": "n1", "labels": {"os": "linux"}}, "spec": {"taints": taints}})
}

fn set(selector: Value) -> Value {
    json!({
        "metadata": {"namespace": "culvert-system", "name": "watcher"},
        "spec": {"template": {"spec": {"nodeSelector": selector}}},
    })
}

#[test]
fn the_plugin_comes_into_the_chain_and_stays_whatever_the_owner_of_the_file_does() {
    let chained = Chained::new("::1", "10-net.conflist", LIST);
    eventually("in the chain", || chained.is_in("10-net.conflist"));
    let binary = || std::fs::read(chained.node.path("bin/culvert-cni")).ok();
    assert_eq!(binary(), std::fs::read(plugin()).ok());
    let list: Value = serde_json::from_str(&chained.file("10-net.conflist").expect("there")).expect("JSON");
    let ours = &list["plugins"][1];
    assert_eq!(ours["socket"], chained.node.path("run/cni.sock").to_str().expect("text"));
    assert_eq!(ours["excludeNamespaces"], json!(["kube-system", "culvert-system"]));
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        // Written in place by one, renamed into place by another.
        let text = LIST.replace("1.5e3", &format!("{n}e2"));
        if n % 2 == 0 {
            chained.write("10-net.conflist", &text);
        } else {
            chained.write("aside", &text);
            let dir = chained.node.path("net.d");
            std::fs::rename(dir.join("aside"), dir.join("10-net.conflist")).expect("renamed");
        }
        let took = within(Duration::from_secs(20), "back in the chain", || chained.is_in("10-net.conflist"));
        slowest = slowest.max(took);
        assert!(chained.file("10-net.conflist").is_some_and(|text| text.contains(&format!("\"mtu\": {n}e2"))));
    }
    println!("figure: back in the chain after its owner wrote the file: {slowest:?} (slowest of 10)");
    std::fs::remove_file(chained.node.path("bin/culvert-cni")).expect("removed");
    eventually("the binary is back", || binary().is_some());
    // Another network comes first by name.
    chained.write("05-first.conf", SINGLE);
    eventually("in the chain of the first", || chained.is_in("05-first.conflist"));
    eventually("the owner's file is kept aside", || {
        chained.file("05-first.conf.before-culvert").as_deref() == Some(SINGLE)
    });
    // A half-written file is passed over, named, and not touched.
    chained.write("01-half.conflist", "{");
    eventually("named", || chained.log().contains("01-half.conflist"));
    assert_eq!(chained.file("01-half.conflist").as_deref(), Some("{"));
}

#[test]
fn a_successor_finds_the_chain_as_it_was_and_a_removal_leaves_nothing() {
    for (loopback, file, text) in [("127.0.0.1", "10-net.conflist", LIST), ("::1", "10-net.conf", SINGLE)] {
        let mut chained = Chained::new(loopback, file, text);
        eventually("in the chain", || chained.is_in("10-net.conflist"));
        eventually("the taint is off", || chained.taints() == ["other"]);
        let (put, files) = (chained.file("10-net.conflist"), chained.files());
        // An upgrade.
        chained.stop();
        assert_eq!((chained.file("10-net.conflist"), chained.files()), (put.clone(), files.clone()));
        chained.node.start_watcher();
        // Nobody can say.
        chained.fake.refuse("daemonsets", 403, 1000);
        chained.stop();
        assert_eq!((chained.file("10-net.conflist"), chained.files()), (put.clone(), files.clone()));
        chained.fake.forgive();
        let asked = chained.fake.requests().len();
        chained.node.start_watcher();
        eventually("the set is watched", || {
            chained.fake.requests()[asked..].iter().any(|one| one.contains("daemonsets?watch"))
        });
        // Uninstalled, and by the time of our end the account may ask nothing any more: what was heard before counts.
        chained.fake.delete_in(SETS, "culvert-system", "watcher");
        eventually("its deletion is heard", || {
            chained.log().lines().any(|line| line.contains("daemonsets/watcher") && line.contains("deleted"))
        });
        chained.fake.refuse("daemonsets", 403, 1000);
        chained.stop();
        assert_eq!(chained.files(), [format!("net.d/{file}")]);
        assert_eq!(chained.file(file).as_deref(), Some(text));
        assert!(!chained.node.path("state").exists(), "state is left");
        assert_eq!(chained.taints(), ["other"]);
    }
}

#[test]
fn a_node_that_is_not_chosen_any_more_is_left_and_one_whose_chain_is_lost_says_so() {
    let mut chained = Chained::new("127.0.0.1", "10-net.conflist", LIST);
    eventually("the taint is off", || chained.taints() == ["other"]);
    // A version that our plugin does not speak: nothing may be put there, and no pod of the mesh should come.
    chained.write("10-net.conflist", &LIST.replace("1.0.0", "0.2.0"));
    let took = within(Duration::from_secs(60), "the taint is on", || chained.taints() == ["other", TAINT]);
    println!("figure: taint {took:?} after the chain was lost");
    chained.write("10-net.conflist", LIST);
    eventually("the taint is off again", || chained.taints() == ["other"]);
    chained.fake.put_in(SETS, set(json!({"os": "windows"})));
    chained.stop();
    assert_eq!(chained.files(), ["net.d/10-net.conflist"]);
    assert_eq!(chained.file("10-net.conflist").as_deref(), Some(LIST));
}

#[test]
fn after_a_kill_the_clean_up_by_hand_leaves_nothing_and_refuses_while_one_runs() {
    let mut chained = Chained::new("127.0.0.1", "10-net.conf", SINGLE);
    eventually("in the chain", || chained.is_in("10-net.conflist"));
    let refused = chained.uninstall();
    assert!(!refused.status.success() && chained.is_in("10-net.conflist"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another pod-watcher runs"), "{refused:?}");
    chained.node.kill_watcher();
    for _ in 0..2 {
        let done = chained.uninstall();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(chained.files(), ["net.d/10-net.conf"]);
        assert_eq!(chained.file("10-net.conf").as_deref(), Some(SINGLE));
        assert!(!chained.node.path("state").exists());
    }
}

/// Calls the plugin without a container.
fn ask_plugin(command: &str, conf: &Value) -> (bool, String) {
    let mut call = Command::new(plugin());
    call.env_clear().env("CNI_COMMAND", command).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = call.spawn().expect("culvert-cni starts");
    child.stdin.take().expect("piped").write_all(conf.to_string().as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    (output.status.success(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn what_is_put_into_the_chain_is_what_the_plugin_takes_in_the_versions_that_it_speaks() {
    let chained = Chained::new("::1", "10-net.conflist", LIST);
    eventually("in the chain", || chained.is_in("10-net.conflist"));
    let list: Value = serde_json::from_str(&chained.file("10-net.conflist").expect("there")).expect("JSON");
    let mut conf = list["plugins"][1].clone();
    conf["name"] = "net".into();
    conf["cniVersion"] = "1.1.0".into();
    assert_eq!(ask_plugin("STATUS", &conf), (true, String::new()));
    let (ok, answer) = ask_plugin("VERSION", &json!({"cniVersion": "1.0.0"}));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let spoken: Vec<&str> =
        answer["supportedVersions"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(ok && spoken.len() > 2, "{answer}");
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.2.0", "2.0.0"] {
        // Looked at, whatever the version: the file beside it is named anew each time.
        let half = format!("00-{version}.conf");
        chained.write("10-net.conflist", &LIST.replace("1.0.0", version));
        chained.write(&half, "{");
        eventually("looked at", || chained.log().contains(&half));
        eventually(&format!("{version}: {spoken:?}"), || chained.is_in("10-net.conflist") == spoken.contains(&version));
    }
}
