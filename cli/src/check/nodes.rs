//! Each node, as its kubelet describes it.

use mesh_api::manifests::Node;

use super::Finding;
use crate::names::NOT_READY;

/// `reject` in prerouting came with Linux 5.9; NAT in tables of family inet with 5.2.
const OLDEST: (u32, u32) = (5, 9);
/// Tables with an owner that outlive it (NFT_TABLE_F_PERSIST) came with Linux 6.9.
const OWNED_TABLES: (u32, u32) = (6, 9);

/// All that is to be said of a node.
pub fn judge(node: &Node) -> Vec<Finding> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let object = format!("node {name}");
    let status = node.status.as_ref();
    let Some(info) = status.and_then(|status| status.node_info.as_ref()) else {
        return vec![Finding::warning(object, "its kubelet has not described it", "see kubectl describe node")];
    };
    let mut findings = Vec::new();
    if (info.operating_system.as_str(), info.architecture.as_str()) != ("linux", "amd64") {
        findings.push(Finding::warning(
            object.as_str(),
            format!("is {}/{}; Culvert's images are linux/amd64", info.operating_system, info.architecture),
            "its pods cannot be in the mesh; the DaemonSets' nodeSelector leaves it out",
        ));
    }
    match kernel(&info.kernel_version) {
        None => findings.push(Finding::warning(
            object.as_str(),
            format!("kernel {:?} cannot be told", info.kernel_version),
            "Linux 5.9 is needed, 6.9 is better: see docs/compatibility.md",
        )),
        Some(version) if version < OLDEST => findings.push(Finding::failed(
            object.as_str(),
            format!("kernel {} is older than 5.9, which refuses before it routes", info.kernel_version),
            "upgrade the node's kernel, or keep it out by a nodeSelector",
        )),
        Some(version) if version < OWNED_TABLES => findings.push(Finding::fine(
            object.as_str(),
            format!(
                "kernel {}: rules in plain tables, repaired when others change them (owned tables need 6.9)",
                info.kernel_version
            ),
        )),
        Some(_) => findings.push(Finding::fine(
            object.as_str(),
            format!("kernel {}, {}", info.kernel_version, info.container_runtime_version),
        )),
    }
    if !is_ready(node) {
        let message = condition(node, "Ready").and_then(|one| one.message.clone()).unwrap_or_default();
        findings.push(Finding::warning(
            object.as_str(),
            format!("is not Ready: {message}"),
            "see kubectl describe node",
        ));
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    if taints.filter(|taint| taint.key == NOT_READY).count() > 0 {
        findings.push(Finding::failed(
            object.as_str(),
            format!("has the taint {NOT_READY}: no chain entry, or no pod-watcher, so pods are kept away"),
            "see culvert logs pod-watcher --node; the taint goes when it is ready",
        ));
    }
    findings
}

/// Whether it says so of itself.
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|one| one.status == "True")
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == kind)
}

/// `6.8.0-45-generic` is 6.8.
fn kernel(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    fn check(kernel: &str, architecture: &str, ready: &str, taint: &str, worst: Level, says: &str) {
        let node = json!({
            "metadata": {"name": "n1"},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
            "status": {
                "conditions": [{"type": "Ready", "status": ready, "message": "kubelet stopped"}],
                "nodeInfo": {"architecture": architecture, "operatingSystem": "linux", "kernelVersion": kernel,
                    "bootID": "", "containerRuntimeVersion": "containerd://2.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3",
                    "machineID": "", "osImage": "", "systemUUID": ""},
            },
        });
        let found = judge(&serde_json::from_value(node).expect("a node"));
        let level = found.iter().map(|one| one.level).max().expect("a finding");
        assert_eq!(level, worst, "{found:?}");
        assert!(found.iter().any(|one| one.level == worst && one.says.contains(says)), "{found:?}");
    }

    #[test]
    fn a_node_is_judged_by_kernel_architecture_readiness_and_taint() {
        check("6.12.1-amd64", "amd64", "True", "other", Level::Fine, "containerd");
        check("6.8.0-45-generic", "amd64", "True", "other", Level::Fine, "plain tables");
        check("4.18.0-513.el8", "amd64", "True", "other", Level::Failed, "older than 5.9");
        check("unknown", "amd64", "True", "other", Level::Warning, "cannot be told");
        check("6.12.1", "arm64", "True", "other", Level::Warning, "linux/arm64");
        check("6.12.1", "amd64", "Unknown", "other", Level::Warning, "kubelet stopped");
        check("6.12.1", "amd64", "True", NOT_READY, Level::Failed, "taint");
    }
}
