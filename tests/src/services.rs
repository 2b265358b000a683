//! What kube-proxy's users rely on, for clients of the mesh: session affinity, endpoints that serve while they end, a slice's own word.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lab::{App, Lab, Pod, PodHandle, plan};

use crate::support;
use crate::talk::{self, Met};

const ECHO: u16 = 7000;
const READY: &str = "{ready: true}";
const ENDING: &str = "{ready: false, serving: true, terminating: true}";
/// Connections of one client: that two endpoints share them by chance and one gets them all has odds of 1 in 10^8.
const CONNECTIONS: u64 = 30;

/// A Service of namespace shop with addresses of both families, and a slice of each family for these pods.
struct Service<'a> {
    name: &'a str,
    number: u8,
    spec: &'a str,
    /// Each with its conditions.
    pods: &'a [(&'a PodHandle, &'a str)],
}

impl Service<'_> {
    fn vips(&self) -> [SocketAddr; 2] {
        let number = self.number;
        let ips = [format!("198.18.128.{number}"), format!("fd77:0:0:80::{number}")];
        ips.map(|ip| SocketAddr::new(ip.parse().expect("an address"), 80))
    }

    fn put(&self, lab: &Lab) -> Result<()> {
        let Service { name, spec, .. } = self;
        let [v4, v6] = self.vips().map(|vip| vip.ip());
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {v4}, clusterIPs: [{v4}, \"{v6}\"], ports: [{{name: h, port: 80, targetPort: {ECHO}}}]{spec}}}\n"
        );
        for (family, is_of_family) in [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)] {
            let endpoints = self.pods.iter().map(|(pod, conditions)| {
                let (ip, record) = (pod.ips().into_iter().find(is_of_family).expect("both families"), pod.record());
                format!(
                    "- {{addresses: [\"{ip}\"], conditions: {conditions}, nodeName: {}, \
                     targetRef: {{kind: Pod, namespace: shop, name: {}}}}}\n",
                    plan::node_name(pod.node()),
                    record.pod.name
                )
            });
            yaml += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, namespace: shop, \
                 labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
                 ports: [{{name: h, port: {ECHO}, protocol: TCP}}]\nendpoints:\n{}",
                family.to_lowercase(),
                endpoints.collect::<String>()
            );
        }
        lab.apply(name, &yaml)
    }
}

fn server(lab: &Lab, name: &str, node: usize) -> Result<PodHandle> {
    lab.add_pod(Pod::new("shop", name).node(node).app(App::serve(&[("echo", ECHO)])))
}

fn counted(pod: &PodHandle) -> u64 {
    pod.stats().port(ECHO).connections
}

#[test]
fn a_client_of_a_sticky_service_meets_one_endpoint_while_it_is_there_and_then_another() -> Result<()> {
    let lab = support::mesh("svc-sticky")?;
    let mut servers = vec![
        server(&lab, "web-1", 1)?,
        server(&lab, "web-2", 2)?,
        server(&lab, "web-3", 2)?,
        server(&lab, "web-4", 1)?,
    ];
    let clients = [
        lab.add_pod(Pod::new("shop", "one").app(App::None))?,
        lab.add_pod(Pod::new("shop", "two").node(2).app(App::None))?,
    ];
    let sticky = |pods: &[PodHandle]| {
        let pods: Vec<(&PodHandle, &str)> = pods.iter().map(|pod| (pod, READY)).collect();
        let spec = ", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}";
        let service = Service { name: "sticky", number: 50, spec, pods: &pods };
        service.put(&lab).map(|()| service.vips())
    };
    let vips = sticky(&servers)?;
    for client in &clients {
        for vip in vips {
            talk::until(client, vip, Met::Answered)?;
            let before: Vec<u64> = servers.iter().map(counted).collect();
            for _ in 0..CONNECTIONS {
                ensure!(talk::attempt(client, vip)? == Met::Answered, "{vip}");
            }
            let now: Vec<u64> = servers.iter().map(counted).zip(before).map(|(now, before)| now - before).collect();
            let met: BTreeSet<u64> = now.iter().copied().filter(|count| *count > 0).collect();
            ensure!(met == BTreeSet::from([CONNECTIONS]) && now.iter().sum::<u64>() == CONNECTIONS, "{vip}: {now:?}");
        }
    }
    // The endpoint that a client has goes, and the client is led to one of the others, and stays there.
    let (client, vip) = (&clients[0], vips[0]);
    let before: Vec<u64> = servers.iter().map(counted).collect();
    ensure!(talk::attempt(client, vip)? == Met::Answered, "{vip}");
    let met = servers.iter().zip(before).position(|(server, before)| counted(server) > before);
    let gone = servers.remove(met.expect("somebody answered"));
    sticky(&servers)?;
    lab.remove_pod(&gone)?;
    talk::until(client, vip, Met::Answered)?;
    let before: Vec<u64> = servers.iter().map(counted).collect();
    for _ in 0..CONNECTIONS {
        ensure!(talk::attempt(client, vip)? == Met::Answered, "{vip}");
    }
    let now: Vec<u64> = servers.iter().map(counted).zip(before).map(|(now, before)| now - before).collect();
    ensure!(now.iter().filter(|count| **count > 0).count() == 1, "after the end of the first: {now:?}");
    lab.down()
}

#[test]
fn endpoints_that_end_serve_while_no_other_is_there_and_a_slice_is_believed_before_its_pod() -> Result<()> {
    let lab = support::mesh("svc-ending")?;
    let (one, other) = (server(&lab, "web-1", 1)?, server(&lab, "web-2", 2)?);
    let client = lab.add_pod(Pod::new("shop", "cart").app(App::None))?;
    // It listens, and nobody has said that it is ready.
    let unready = lab.add_sandbox(Pod::new("shop", "slow").node(2))?;
    let app = unready.program("slow", &["culvert-lab", "app"]).args([format!("echo:{ECHO}")]);
    unready.spawn(app)?.wait_stdout("ready", support::CHANGE)?;

    for (number, conditions, pod, wanted) in [
        (63, ENDING, &one, Met::Answered),
        (64, READY, &unready, Met::Answered),
        (65, "{}", &unready, Met::Answered),
        (66, "{ready: false, serving: false, terminating: true}", &one, Met::Refused),
        (67, "{ready: false}", &one, Met::Refused),
    ] {
        let service = Service { name: &format!("svc-{number}"), number, spec: "", pods: &[(pod, conditions)] };
        service.put(&lab)?;
        for vip in service.vips() {
            talk::until(&client, vip, wanted)?;
        }
    }
    // Beside one that is ready, the one that ends has no new connections.
    let both = Service { name: "both", number: 68, spec: "", pods: &[(&one, ENDING), (&other, READY)] };
    both.put(&lab)?;
    for vip in both.vips() {
        talk::until(&client, vip, Met::Answered)?;
        let before = [counted(&one), counted(&other)];
        for _ in 0..CONNECTIONS {
            ensure!(talk::attempt(&client, vip)? == Met::Answered, "{vip}");
        }
        let now = [counted(&one) - before[0], counted(&other) - before[1]];
        ensure!(now == [0, CONNECTIONS], "{vip}: {now:?}");
    }
    lab.down()
}
