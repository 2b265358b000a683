//! A Service that prefers endpoints close to its clients: they take everything while there is one, and another does when there is none.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use lab::apps::stats::Stats;
use lab::wait;
use serde_json::{Value, json};

use crate::shop::{self, CHANGE, ECHO, Member, STATS, captured, meshed, start};

/// Requests of a client, half over each family, by which it is judged where they go. If both endpoints might have any of them, one alone has
/// them all once in 10^11 times.
const REQUESTS: usize = 40;
/// Bytes of one (`shop::say`). A probe of kubelet's has none.
const REQUEST: u64 = 5;
const PORT: u16 = 80;

struct Shop {
    cluster: Cluster,
    /// One on each node, both for the endpoints that are called and for the pods that call.
    carts: [Member; 2],
    clients: [Member; 2],
    service: Vec<SocketAddr>,
}

impl Shop {
    fn open() -> Result<Shop> {
        let (cluster, _) = meshed("kube-near", true)?;
        let [cart_1, cart_2, web_1, web_2] = [("cart-1", 1), ("cart-2", 2), ("web-1", 1), ("web-2", 2)]
            .map(|(name, node)| start(&cluster, "shop", name, node));
        let (carts, clients) = ([cart_1?, cart_2?], [web_1?, web_2?]);
        captured(&cluster, &[&carts[0], &carts[1], &clients[0], &clients[1]], true)?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"selector": {"app": "cart"}, "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": PORT, "targetPort": ECHO}]},
        });
        cluster.apply(&service.to_string())?;
        let service = cluster.get(&["service", "cart", "-n", "shop"])?;
        let ips = service["spec"]["clusterIPs"].as_array().context("addresses")?.iter().map(Value::as_str);
        let service = ips
            .map(|ip| Ok(SocketAddr::new(ip.context("text")?.parse()?, PORT)))
            .collect::<Result<Vec<SocketAddr>>>()?;
        ensure!(service.len() == 2, "{service:?}");
        Ok(Shop { cluster, carts, clients, service })
    }

    /// Puts the nodes into zones, and has the Service's slices say so: what they say decides, as it does for kube-proxy, and Kubernetes
    /// writes them anew for a node that moves only when something of the Service changes.
    fn zones(&self, zones: [&str; 2]) -> Result<()> {
        [1, 2].iter().zip(zones).try_for_each(|(node, zone)| {
            let label = format!("topology.kubernetes.io/zone={zone}");
            self.cluster.kubectl(&["label", "node", &format!("node-{node}"), "--overwrite", &label]).map(drop)
        })?;
        let slices = ["endpointslices", "-n", "shop", "-l", "kubernetes.io/service-name=cart"];
        let mut last = String::new();
        // Whoever writes the slices may look at the nodes as they were before: it is told again until it has seen them.
        let mut told = 0;
        wait::until_true("the slices to say the zones", 2 * CHANGE, || {
            let said = self.cluster.get(&slices).map(|list| zones_of(&list)).unwrap_or_default();
            if said == zones {
                return true;
            }
            told += 1;
            last = format!("{said:?}, told {told} times, last: {:?}", self.changed(told));
            false
        })
        .context(last)
    }

    /// Changes something of the Service that nobody reads.
    fn changed(&self, times: u32) -> Result<()> {
        let change = format!("test.culvert.io/changed={times}");
        self.cluster.kubectl(&["annotate", "service", "cart", "-n", "shop", "--overwrite", &change]).map(drop)
    }

    /// What the Service says of which endpoints are right.
    fn says(&self, distribution: Option<&str>, internal: &str) -> Result<()> {
        let patch =
            json!({"spec": {"trafficDistribution": distribution, "internalTrafficPolicy": internal}}).to_string();
        self.cluster.kubectl(&["patch", "service", "cart", "-n", "shop", "--type=merge", "-p", &patch]).map(drop)
    }

    /// How many requests of this client each cart takes; an error if one is not answered.
    fn taken(&self, client: usize) -> Result<[u64; 2]> {
        let stats = [&self.carts[0], &self.carts[1]]
            .map(|cart| shop::process_of(&self.cluster, &cart.name).ok().map(|pid| pid.root(STATS)));
        let now = || stats.each_ref().map(|path| path.as_ref().map_or(0, |path| Stats::read(path).bytes / REQUEST));
        let before = now();
        for to in self.service.iter().cycle().take(REQUESTS) {
            self.clients[client].asks(*to)?.with_context(|| format!("web-{} to {to}", client + 1))?;
        }
        let after = now();
        let taken = [after[0] - before[0], after[1] - before[1]];
        ensure!(taken.iter().sum::<u64>() == REQUESTS as u64, "{taken:?} of {REQUESTS} were counted");
        Ok(taken)
    }

    /// Waits until the requests of each client go to its own of these choices: to each cart that is wanted, and to no other.
    fn until(&self, what: &str, wanted: [[bool; 2]; 2]) -> Result<()> {
        for (client, wanted) in wanted.into_iter().enumerate() {
            let mut last = String::new();
            wait::until_true(what, CHANGE, || {
                let taken = self.taken(client);
                last = format!("{taken:?}");
                taken.is_ok_and(|taken| taken.map(|taken| taken > 0) == wanted)
            })
            .with_context(|| format!("web-{}: {last}", client + 1))?;
        }
        Ok(())
    }
}

/// The zone of the endpoint of each node, by the node's name; nothing while a slice is not whole.
fn zones_of(slices: &Value) -> Vec<String> {
    let mut found = std::collections::BTreeMap::new();
    for slice in slices["items"].as_array().into_iter().flatten() {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let text = |field: &str| endpoint[field].as_str().unwrap_or_default().to_owned();
            let (node, zone) = (text("nodeName"), text("zone"));
            if found.insert(node, zone.clone()).is_some_and(|other| other != zone) {
                return Vec::new();
            }
        }
    }
    found.into_values().collect()
}

#[test]
fn a_service_that_prefers_close_endpoints_is_served_by_them_while_there_are_any_and_by_others_then() -> Result<()> {
    const ANY: [[bool; 2]; 2] = [[true, true], [true, true]];
    const OWN: [[bool; 2]; 2] = [[true, false], [false, true]];
    let shop = Shop::open()?;
    shop.zones(["a", "b"])?;
    shop.until("any endpoint to do", ANY)?;
    shop.says(Some("PreferClose"), "Cluster")?;
    shop.until("PreferClose to keep to a zone each", OWN)?;
    shop.zones(["a", "a"])?;
    shop.until("PreferClose to use all of one zone", ANY)?;
    shop.says(Some("PreferSameNode"), "Cluster")?;
    shop.until("PreferSameNode to keep to a node each", OWN)?;
    shop.says(Some("PreferSameZone"), "Cluster")?;
    shop.until("PreferSameZone to use all of one zone", ANY)?;
    shop.zones(["a", "b"])?;
    shop.until("PreferSameZone to keep to a zone each", OWN)?;
    shop.says(None, "Local")?;
    shop.until("internalTrafficPolicy: Local to keep to a node each", OWN)?;
    // What is preferred goes away: only who says "or none" has none.
    shop.cluster.kubectl(&["delete", "pod", "cart-1", "-n", "shop", "--timeout=60s"])?;
    for to in &shop.service {
        let mut last = String::new();
        wait::until_true("a node without an endpoint to refuse", CHANGE, || {
            let met = shop.clients[0].asks(*to);
            last = format!("{met:?}");
            met.is_ok_and(|met| met.is_err())
        })
        .context(last)?;
    }
    shop.says(Some("PreferSameNode"), "Cluster")?;
    shop.until("the other node's endpoint to serve both", [[false, true], [false, true]])
}
