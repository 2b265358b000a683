//! The indexes against a plain oracle that looks through everything, under random operations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::Action;
use crate::{Health, NetworkPolicy, ServicePort, TrustDomain, Tunnel};

#[derive(Clone, Debug)]
enum Operation {
    Workload(Workload),
    NoWorkload(WorkloadUid),
    Service(Service),
    NoService(ServiceKey),
    Policy(Policy),
    NoPolicy(PolicyKey),
}

/// Records as they are, nothing derived.
#[derive(Clone, Default)]
struct Oracle {
    workloads: BTreeMap<WorkloadUid, Workload>,
    services: BTreeMap<ServiceKey, Service>,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Oracle {
    fn perform(&mut self, operation: Operation) -> bool {
        fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
            let changed = map.get(&key) != Some(&value);
            map.insert(key, value);
            changed
        }
        match operation {
            Operation::Workload(workload) => put(&mut self.workloads, workload.uid.clone(), workload),
            Operation::NoWorkload(uid) => self.workloads.remove(&uid).is_some(),
            Operation::Service(service) => put(&mut self.services, service.key.clone(), service),
            Operation::NoService(key) => self.services.remove(&key).is_some(),
            Operation::Policy(policy) => put(&mut self.policies, policy.key.clone(), policy),
            Operation::NoPolicy(key) => self.policies.remove(&key).is_some(),
        }
    }

    /// Pods before others, HBONE before clear, healthy before leaving, then by key.
    fn best<'a>(all: impl Iterator<Item = &'a Workload>) -> Option<&'a Workload> {
        all.min_by_key(|workload| {
            let pod = workload.uid.0.contains("//Pod/");
            let rank = |wins: bool| if wins { 0 } else { 1 };
            let healthy = workload.health == Health::Healthy;
            (rank(pod), rank(workload.tunnel == Tunnel::Hbone), rank(healthy), workload.uid.clone())
        })
    }

    fn workload_at(&self, ip: IpAddr) -> Option<&Workload> {
        Self::best(self.workloads.values().filter(|workload| {
            !workload.host_network && workload.addresses.iter().any(|known| known.to_canonical() == ip.to_canonical())
        }))
    }

    fn workload_of_pod(&self, pod: &PodName) -> Option<&Workload> {
        Self::best(self.workloads.values().filter(|workload| workload.pod == *pod))
    }

    fn service_at(&self, vip: IpAddr) -> Option<&Service> {
        self.services
            .values()
            .find(|service| service.vips.iter().any(|known| known.to_canonical() == vip.to_canonical()))
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<&Workload> {
        self.workloads.values().filter(|workload| workload.services.contains_key(key)).collect()
    }

    fn policies_for(&self, workload: &Workload) -> Result<Vec<&Policy>, PolicyKey> {
        if let Some(missing) = workload.policies.iter().find(|key| !self.policies.contains_key(key)) {
            return Err(missing.clone());
        }
        let applies = |policy: &&Policy| {
            policy.scope == Scope::Global
                || policy.scope == Scope::Namespace && policy.key.namespace == workload.pod.namespace
                || workload.policies.contains(&policy.key)
        };
        Ok(self.policies.values().filter(applies).collect())
    }
}

fn perform(mesh: &mut Mesh, operation: Operation) -> bool {
    match operation {
        Operation::Workload(workload) => mesh.apply_workload(workload),
        Operation::NoWorkload(uid) => mesh.remove_workload(&uid),
        Operation::Service(service) => mesh.apply_service(service),
        Operation::NoService(key) => mesh.remove_service(&key),
        Operation::Policy(policy) => mesh.apply_policy(policy),
        Operation::NoPolicy(key) => mesh.remove_policy(&key),
    }
}

const NAMESPACES: [&str; 2] = ["shop", "other"];

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(NAMESPACES.to_vec()).prop_map(str::to_owned)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8).prop_map(|n| IpAddr::from([198, 18, 1, n])),
        (0..4u8).prop_map(|n| IpAddr::from(std::net::Ipv4Addr::new(198, 18, 1, n).to_ipv6_mapped())),
        (0..3u16).prop_map(|n| IpAddr::from([0xfd77, 0, 0, 1, 0, 0, 0, n])),
    ]
}

fn uid() -> impl Strategy<Value = WorkloadUid> {
    prop_oneof![
        (0..4u8).prop_map(|n| WorkloadUid(format!("Kubernetes//Pod/shop/p{n}"))),
        (0..2u8).prop_map(|n| WorkloadUid(format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/e{n}"))),
    ]
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (namespace(), 0..2u8).prop_map(|(namespace, n)| ServiceKey { namespace, hostname: format!("s{n}.svc") })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (namespace(), 0..2u8).prop_map(|(namespace, n)| PolicyKey { namespace, name: format!("p{n}") })
}

fn workload() -> impl Strategy<Value = Workload> {
    let few_addresses = prop::collection::vec(ip(), 0..3);
    let services = prop::collection::btree_map(service_key(), Just(crate::Endpoint::at([(80, 8080)])), 0..3);
    let policies = prop::collection::vec(policy_key(), 0..2);
    let is = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2));
    (uid(), namespace(), 0..3u8, few_addresses, services, policies, is).prop_map(
        |(uid, namespace, name, addresses, services, policies, (hbone, healthy, host_network))| Workload {
            uid,
            pod: PodName { namespace, name: format!("p{name}") },
            pod_uid: None,
            service_account: "default".to_owned(),
            trust_domain: TrustDomain::parse("cluster.local").expect("a trust domain"),
            addresses,
            node: "node-1".to_owned(),
            tunnel: if hbone { Tunnel::Hbone } else { Tunnel::Clear },
            policies,
            health: if healthy { Health::Healthy } else { Health::Unhealthy },
            services,
            network_policy: NetworkPolicy::Selected,
            host_network,
            needs_waypoint: false,
            telemetry: Default::default(),
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    (service_key(), prop::collection::vec(ip(), 0..3), any::<bool>()).prop_map(|(key, vips, publish_not_ready)| {
        Service {
            name: key.hostname.clone(),
            key,
            vips,
            ports: vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }],
            subject_alt_names: vec![],
            publish_not_ready,
            near: crate::Near::Any,
            external: None,
            session_affinity: None,
            ip_families: Default::default(),
            needs_waypoint: false,
        }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let scope = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::Selector]);
    (policy_key(), scope, any::<bool>()).prop_map(|(key, scope, dry_run)| Policy {
        key,
        scope,
        action: Action::Allow,
        rules: vec![],
        dry_run,
        invalid: false,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => workload().prop_map(Operation::Workload),
        2 => uid().prop_map(Operation::NoWorkload),
        2 => service().prop_map(Operation::Service),
        1 => service_key().prop_map(Operation::NoService),
        2 => policy().prop_map(Operation::Policy),
        1 => policy_key().prop_map(Operation::NoPolicy),
    ]
}

fn agree(mesh: &Mesh, oracle: &Oracle) -> Result<(), TestCaseError> {
    prop_assert_eq!(mesh.counts(), (oracle.workloads.len(), oracle.services.len(), oracle.policies.len()));
    let v4 = (0..4u8).map(|n| IpAddr::from([198, 18, 1, n]));
    let v6 = (0..3u16).map(|n| IpAddr::from([0xfd77, 0, 0, 1, 0, 0, 0, n]));
    for ip in v4.chain(v6) {
        prop_assert_eq!(mesh.workload_at(ip).map(|found| &**found), oracle.workload_at(ip));
        prop_assert_eq!(mesh.service_at(ip).map(|found| &**found), oracle.service_at(ip));
    }
    for namespace in NAMESPACES {
        for n in 0..3 {
            let pod = PodName { namespace: namespace.to_owned(), name: format!("p{n}") };
            prop_assert_eq!(mesh.workload_of_pod(&pod).map(|found| &**found), oracle.workload_of_pod(&pod));
            let key = ServiceKey { namespace: namespace.to_owned(), hostname: format!("s{n}.svc") };
            prop_assert_eq!(mesh.service(&key).map(|found| &**found), oracle.services.get(&key));
            let endpoints = mesh.endpoints(&key);
            prop_assert_eq!(endpoints.iter().map(|found| &**found).collect::<Vec<_>>(), oracle.endpoints(&key));
        }
    }
    for (uid, workload) in &oracle.workloads {
        prop_assert_eq!(mesh.workload(uid).map(|found| &**found), Some(workload));
        let found = mesh.policies_for(workload);
        let found =
            found.as_ref().map(|all| all.iter().map(|policy| &**policy).collect::<Vec<_>>()).map_err(Clone::clone);
        prop_assert_eq!(found, oracle.policies_for(workload));
    }
    prop_assert_eq!(mesh.policy_keys(), oracle.policies.keys().cloned().collect());
    prop_assert_eq!(mesh.workloads().count(), oracle.workloads.len());
    prop_assert_eq!(mesh.services().count(), oracle.services.len());
    prop_assert_eq!(mesh.policies().count(), oracle.policies.len());
    Ok(())
}

proptest! {
    #[test]
    fn every_index_tells_what_a_search_through_all_records_tells(operations in prop::collection::vec(operation(), 0..60)) {
        let mut mesh = Mesh::default();
        let mut oracle = Oracle::default();
        let mut snapshot = (mesh.clone(), oracle.clone());
        for (step, operation) in operations.into_iter().enumerate() {
            if step == 20 {
                snapshot = (mesh.clone(), oracle.clone());
            }
            let changed = perform(&mut mesh, operation.clone());
            prop_assert_eq!(changed, oracle.perform(operation.clone()), "{:?}", operation);
            agree(&mesh, &oracle)?;
        }
        // A reader's snapshot is what it was, whatever the writer did since.
        agree(&snapshot.0, &snapshot.1)?;
        // When all is gone, nothing is left in the indexes.
        for uid in oracle.workloads.keys() {
            mesh.remove_workload(uid);
        }
        for key in oracle.services.keys() {
            mesh.remove_service(key);
        }
        for key in oracle.policies.keys() {
            mesh.remove_policy(key);
        }
        let left = [mesh.by_pod.len(), mesh.by_address.len(), mesh.by_service.len(), mesh.by_vip.len(), mesh.of_namespace.len()];
        prop_assert_eq!(left, [0; 5]);
        prop_assert!(mesh.global.is_empty());
    }
}
