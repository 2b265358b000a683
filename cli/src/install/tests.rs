//! Install and uninstall against an API server that keeps what it is told.

use std::path::PathBuf;
use std::time::Duration;

use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use serde_json::{Value, json};

use super::manifest::tests::SMALL;
use super::uninstall::Captured;
use super::*;
use crate::args::{Common, Output};

struct World {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl World {
    /// With discovery, and controllers that have done everything already.
    async fn new(loopback: &str) -> Self {
        let fake = Fake::start(loopback).await;
        let kind =
            |name: &str, kind: &str, namespaced: bool| json!({"name": name, "kind": kind, "namespaced": namespaced});
        let resources = |list: Value| json!({"kind": "APIResourceList", "resources": list});
        let core = json!([kind("namespaces", "Namespace", false), kind("serviceaccounts", "ServiceAccount", true)]);
        fake.say_at("/api/v1", resources(core));
        let apps = json!([kind("daemonsets", "DaemonSet", true), kind("deployments", "Deployment", true)]);
        fake.say_at("/apis/apps/v1", resources(apps));
        let definitions = json!([kind("customresourcedefinitions", "CustomResourceDefinition", false)]);
        fake.say_at("/apis/apiextensions.k8s.io/v1", resources(definitions));
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("config"), fake.kubeconfig()).expect("written");
        std::fs::write(dir.path().join("culvert.yaml"), SMALL).expect("written");
        Self { fake, dir }
    }

    fn manifest(&self) -> PathBuf {
        self.dir.path().join("culvert.yaml")
    }

    async fn mesh(&self, patience: Duration) -> Mesh {
        let common = Common {
            kubeconfig: Some(self.dir.path().join("config")),
            context: None,
            namespace: None,
            timeout: None,
            output: Output::Table,
        };
        Mesh::connect(&common, patience).await.expect("connected")
    }

    fn definition(&self, labels: Value) {
        let object = json!({
            "metadata": {"name": "authorizationpolicies.security.istio.io", "labels": labels},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        });
        self.fake.put_at("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", object);
    }

    fn workloads(&self, ready: u64) {
        for (plural, name) in [
            ("daemonsets", "culvert-node-proxy"),
            ("daemonsets", "culvert-pod-watcher"),
            ("deployments", "culvert-control-plane"),
        ] {
            let status = json!({
                "desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": ready,
                "replicas": 1, "updatedReplicas": 1, "availableReplicas": ready,
            });
            let object = json!({"metadata": {"namespace": "culvert-system", "name": name}, "status": status});
            self.fake.put_at(&format!("/apis/apps/v1/{plural}"), object);
        }
    }

    fn applied(&self) -> Vec<String> {
        self.names("PATCH ")
    }

    fn deleted(&self) -> Vec<String> {
        self.names("DELETE ")
    }

    /// The names of objects of such requests, in their order.
    fn names(&self, method: &str) -> Vec<String> {
        let requests = self.fake.requests();
        let paths = requests.iter().filter_map(|line| line.strip_prefix(method)?.split_once('?'));
        paths.map(|(path, _)| path.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    }
}

const HOW: How = How { dry_run: false, wait: true };

#[tokio::test]
async fn install_applies_in_order_waits_and_can_be_repeated() {
    for loopback in ["127.0.0.1", "::1"] {
        let world = World::new(loopback).await;
        world.definition(json!({"app.kubernetes.io/part-of": "culvert"}));
        world.workloads(1);
        let mesh = world.mesh(Duration::from_secs(20)).await;
        let answer = run(&mesh, &[world.manifest()], HOW).await.expect("installed");
        assert!(
            answer.well && answer.text.starts_with("6 objects applied, 0 left alone; everything is ready"),
            "{}",
            answer.text
        );
        let order = world.applied();
        assert_eq!(order[..3], ["culvert-system", "authorizationpolicies.security.istio.io", "pod-watcher"]);
        assert_eq!(order.len(), 6);
        run(&mesh, &[world.manifest()], HOW).await.expect("installed again");
    }
}

#[tokio::test]
async fn a_definition_of_others_is_neither_changed_nor_deleted() {
    let world = World::new("::1").await;
    world.definition(json!({"app": "istio"}));
    world.workloads(1);
    let mesh = world.mesh(Duration::from_secs(20)).await;
    let answer = run(&mesh, &[world.manifest()], HOW).await.expect("installed");
    assert!(answer.text.starts_with("5 objects applied, 1 left alone"), "{}", answer.text);
    let how = uninstall::How { crds: true, captured: Captured::Refuse, dry_run: false };
    uninstall::run(&mesh, &[world.manifest()], how).await.expect("uninstalled");
    assert!(!world.deleted().iter().any(|name| name == "authorizationpolicies.security.istio.io"));
}

#[tokio::test]
async fn a_roll_out_that_does_not_end_says_what_is_missing() {
    let world = World::new("::1").await;
    world.definition(json!({"app.kubernetes.io/part-of": "culvert"}));
    world.workloads(0);
    let mesh = world.mesh(Duration::from_secs(1)).await;
    let failure = run(&mesh, &[world.manifest()], HOW).await.expect_err("not ready");
    assert_eq!(failure.status(), 1);
    assert!(failure.what().contains("DaemonSet culvert-system/culvert-pod-watcher"), "{failure}");
}

#[tokio::test]
async fn uninstall_takes_pod_watcher_first_keeps_policies_and_can_be_repeated() {
    let world = World::new("127.0.0.1").await;
    world.definition(json!({"app.kubernetes.io/part-of": "culvert"}));
    world.workloads(1);
    let mesh = world.mesh(Duration::from_secs(20)).await;
    run(&mesh, &[world.manifest()], HOW).await.expect("installed");
    let how = uninstall::How { crds: false, captured: Captured::Refuse, dry_run: false };
    let answer = uninstall::run(&mesh, &[world.manifest()], how).await.expect("uninstalled");
    assert!(answer.well, "{}", answer.text);
    let order = ["culvert-pod-watcher", "culvert-node-proxy", "culvert-control-plane", "pod-watcher", "culvert-system"];
    assert_eq!(world.deleted(), order);
    let again = uninstall::run(&mesh, &[world.manifest()], how).await.expect("nothing to do");
    assert_eq!(again.text, "0 objects deleted\n");
    let crds = uninstall::How { crds: true, captured: Captured::Refuse, dry_run: false };
    uninstall::run(&mesh, &[world.manifest()], crds).await.expect("definitions");
    assert!(world.deleted().iter().any(|name| name == "authorizationpolicies.security.istio.io"));
}

#[tokio::test]
async fn uninstall_names_what_pod_watcher_left_behind() {
    let world = World::new("::1").await;
    let condition = json!([{"type": "culvert.io/Captured", "status": "True"}]);
    let pod = json!({"metadata": {"namespace": "shop", "name": "cart"}, "spec": {"containers": []}, "status": {"conditions": condition}});
    world.fake.put_at("/api/v1/pods", pod);
    let node = json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "culvert.io/not-ready", "effect": "NoSchedule"}]}});
    world.fake.put_at("/api/v1/nodes", node);
    let mesh = world.mesh(Duration::from_secs(20)).await;
    let how = uninstall::How { crds: false, captured: Captured::Refuse, dry_run: false };
    let answer = uninstall::run(&mesh, &[world.manifest()], how).await.expect("ended");
    assert!(
        !answer.well && answer.text.contains("pod shop/cart") && answer.text.contains("node n1: taint"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let world = World::new("::1").await;
    let mesh = world.mesh(Duration::from_secs(20)).await;
    let how = uninstall::How { crds: true, captured: Captured::Refuse, dry_run: true };
    world.workloads(1);
    uninstall::run(&mesh, &[world.manifest()], how).await.expect("said");
    assert!(world.deleted().is_empty());
    run(&mesh, &[world.manifest()], How { dry_run: true, wait: true }).await.expect("said");
    let requests = world.fake.requests();
    assert!(
        requests.iter().filter(|line| line.starts_with("PATCH")).all(|line| line.contains("dryRun=All")),
        "{requests:?}"
    );
}

#[tokio::test]
async fn uninstall_does_nothing_while_a_pod_is_captured_unless_it_frees_or_abandons_it() {
    for loopback in ["127.0.0.1", "::1"] {
        let world = World::new(loopback).await;
        world.workloads(1);
        let pod = |status: &str| {
            let condition = json!([{"type": "culvert.io/Captured", "status": status}]);
            let labels = json!({"culvert.io/mesh": "enabled"});
            json!({"metadata": {"namespace": "shop", "name": "cart", "labels": labels}, "spec": {"containers": []}, "status": {"conditions": condition}})
        };
        world.fake.put(Kind::Pod, pod("True"));
        world
            .fake
            .put(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}}));
        world
            .fake
            .put(Kind::Namespace, json!({"metadata": {"name": "out", "labels": {"culvert.io/mesh": "disabled"}}}));
        let how = |captured| uninstall::How { crds: false, captured, dry_run: false };
        let files = [world.manifest()];
        let mesh = world.mesh(Duration::from_secs(1)).await;
        let failure = uninstall::run(&mesh, &files, how(Captured::Refuse)).await.expect_err("a pod is captured");
        assert!(failure.what().contains("shop/cart") && failure.next().contains("--unenroll"), "{failure}");
        // Nobody frees it.
        let failure = uninstall::run(&mesh, &files, how(Captured::Unenroll)).await.expect_err("still captured");
        assert!(failure.what().contains("nothing was deleted"), "{failure}");
        assert!(world.deleted().is_empty());
        let label = |kind, namespace: &str, name: &str| {
            world.fake.object(kind, namespace, name).expect("an object")["metadata"]["labels"]["culvert.io/mesh"]
                .clone()
        };
        assert!(label(Kind::Namespace, "", "shop").is_null() && label(Kind::Pod, "shop", "cart").is_null());
        assert_eq!(label(Kind::Namespace, "", "out"), "disabled");
        let mesh = world.mesh(Duration::from_secs(20)).await;
        let answer = uninstall::run(&mesh, &files, how(Captured::Abandon)).await.expect("uninstalled");
        assert!(!answer.well && answer.text.contains("left behind: pod shop/cart"), "{}", answer.text);
        world.workloads(1);
        world.fake.put(Kind::Pod, pod("False"));
        let answer = uninstall::run(&mesh, &files, how(Captured::Unenroll)).await.expect("uninstalled");
        assert!(answer.well, "{}", answer.text);
    }
}
