//! DEL of the real binary, with whatever a runtime may ask it: always done, without a word, and pod-watcher is told or finds a marker.
//!
//! Each call has a mount namespace of its own with empty `/var/lib` and `/run`: what cannot be read has its default there. Needs root.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs the plugin, then names the markers that it left on standard error, where the plugin writes nothing.
const SCRIPT: &str = r#"
mount --make-rprivate / && mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /run || exit 99
"$0"
code=$?
cd /var/lib/culvert/cni/pending 2>/dev/null && cat * >&2
exit $code
"#;
const ARGS: &str = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u";
const CONF: &str = r#"{"cniVersion":"1.1.0","name":"n","type":"culvert-cni","timeoutSeconds":1}"#;

/// Exit status, standard output, and the markers.
fn del(container: &str, args: &str, netns: Option<&str>, stdin: &[u8]) -> (Option<i32>, String, String) {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, env!("CARGO_BIN_EXE_culvert-cni")]);
    command.env("CNI_COMMAND", "DEL").env("CNI_IFNAME", "eth0").env("CNI_PATH", "/opt/cni/bin");
    command.env("CNI_CONTAINERID", container).env("CNI_ARGS", args);
    if let Some(netns) = netns {
        command.env("CNI_NETNS", netns);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("unshare runs");
    // It need not read what it has no use for.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn del_succeeds_for_whatever_it_is_asked_with_and_leaves_a_marker_while_pod_watcher_is_down() {
    let with = |rest: &str| format!(r#"{{"type":"culvert-cni",{rest}}}"#).into_bytes();
    let whole = CONF.as_bytes().to_vec();
    let huge = vec![b' '; 5 << 20];
    let netns = Some("/run/netns/gone");
    let named = r#""container_id":"c1","ifname":"eth0","pod_namespace":"shop","pod_name":"cart","pod_uid":"u""#;
    let by_id = r#""container_id":"c1","ifname":"eth0","pod_namespace":"","pod_name":"","pod_uid":"""#;
    for (what, container, args, netns, stdin, marker) in [
        ("all as it should be", "c1", ARGS, netns, whole.clone(), named),
        ("no netns", "c1", ARGS, None, whole.clone(), named),
        (
            "no prevResult that can be read",
            "c1",
            ARGS,
            netns,
            with(r#""cniVersion":"1.1.0","name":"n","prevResult":7"#),
            named,
        ),
        ("no name", "c1", ARGS, netns, with(r#""cniVersion":"1.1.0""#), named),
        ("a name that is none", "c1", ARGS, netns, with(r#""cniVersion":"1.1.0","name":[]"#), named),
        ("no version", "c1", ARGS, netns, with(r#""name":"n""#), named),
        ("a version of the future", "c1", ARGS, netns, with(r#""cniVersion":"7.0.0","name":"n""#), named),
        ("a version that is none", "c1", ARGS, netns, with(r#""cniVersion":{},"name":"n""#), named),
        ("a setting of the future", "c1", ARGS, netns, with(r#""cniVersion":"1.1.0","name":"n","future":[1]"#), named),
        (
            "settings that are none",
            "c1",
            ARGS,
            netns,
            with(r#""socket":1,"timeoutSeconds":"x","stateDir":2,"excludeNamespaces":3"#),
            named,
        ),
        ("attachments that are none", "c1", ARGS, netns, with(r#""cni.dev/valid-attachments":{}"#), named),
        ("no configuration", "c1", ARGS, netns, Vec::new(), named),
        ("no JSON", "c1", ARGS, netns, b"\xff\0{[".to_vec(), named),
        ("no object", "c1", ARGS, netns, b"[1, null]".to_vec(), named),
        ("more than anybody sends", "c1", ARGS, netns, huge, named),
        ("arguments that cannot be parsed", "c1", "what;;=;K8S_POD_NAMESPACE", netns, whole.clone(), by_id),
        (
            "arguments with names that are none",
            "c1",
            "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=..\u{fc};K8S_POD_UID=../x",
            netns,
            whole.clone(),
            by_id,
        ),
        ("no arguments", "c1", "", netns, whole.clone(), by_id),
        (
            "a namespace that is never enrolled",
            "c1",
            "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
            netns,
            whole.clone(),
            "",
        ),
        ("no container", "", ARGS, netns, whole.clone(), ""),
        ("a container that is none", "../../etc", ARGS, netns, whole, ""),
    ] {
        let (code, answer, markers) = del(container, args, netns, &stdin);
        assert_eq!((code, answer.as_str()), (Some(0), ""), "{what}: {markers}");
        assert!(markers.contains(marker) && markers.is_empty() == marker.is_empty(), "{what}: {markers:?}");
    }
}
