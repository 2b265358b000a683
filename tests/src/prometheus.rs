//! A Prometheus that is not ours (Debian's) finds what it needs: it scrapes all three daemons over both IP families, sees what the
//! clients counted, and its linter has nothing to say about any page.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle, Process, Program, mesh, plan, wait};
use serde_json::Value;

use crate::support::{self, CHANGE, family, figure};
use crate::talk::{self, at};

/// Connections to each address of each server.
const EACH: u64 = 7;
/// Bytes of each, and back.
const SAID: u64 = 5;

/// Prometheus on the lab's router, which reaches nodes and pods alike.
struct Prometheus<'l> {
    lab: &'l Lab,
    process: Process,
    _files: tempfile::TempDir,
}

/// Where it answers, on the router's loopback.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

impl<'l> Prometheus<'l> {
    /// Started, with these targets by job, each told apart by the family of its address.
    fn start(lab: &'l Lab, jobs: &BTreeMap<&str, Vec<SocketAddr>>) -> Result<Self> {
        let mut config = "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n".to_owned();
        for (job, targets) in jobs {
            config += &format!("- job_name: {job}\n  static_configs:\n");
            for target in targets {
                config += &format!("  - {{targets: ['{target}'], labels: {{family: {}}}}}\n", family(target.ip()));
            }
        }
        let files = tempfile::Builder::new().prefix("culvert-prometheus-").tempdir_in("/tmp")?;
        let path = |name: &str| files.path().join(name).display().to_string();
        fs::write(path("prometheus.yml"), config)?;
        let program = Program::new("prometheus", &["/usr/bin/prometheus"]).args([
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            format!("--web.listen-address={API}"),
        ]);
        let process = lab.fabric().spawn(program).context("Debian's prometheus: cargo xtask test installs it")?;
        process.wait_log("Server is ready to receive web requests", CHANGE)?;
        Ok(Self { lab, process, _files: files })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let (code, body) = mesh::get(self.lab.fabric(), API, path)?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{code} {body}"))?;
        ensure!(code == 200 && answer["status"] == "success", "{code} {answer}");
        Ok(answer["data"].clone())
    }

    /// The value of a query that has one.
    fn value(&self, query: &str) -> Result<f64> {
        let data = self.get(&format!("/api/v1/query?query={}", escaped(query)))?;
        let result = data["result"].as_array().filter(|all| all.len() == 1);
        let value = result.and_then(|all| all[0]["value"][1].as_str()?.parse().ok());
        value.with_context(|| format!("{query}: {data}"))
    }

    /// Waits until a query has this value.
    fn comes_to(&self, query: &str, wanted: f64) -> Result<()> {
        let mut last = Ok(f64::NAN);
        let same = |value: &Result<f64>| value.as_ref().is_ok_and(|value| (value - wanted).abs() < 0.5);
        wait::until_true(&format!("{query} to be {wanted}"), CHANGE, || {
            last = self.value(query);
            same(&last)
        })
        .with_context(|| format!("last: {last:?}"))
    }
}

/// RFC 3986: everything but letters and digits, by its bytes.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The metrics endpoints of all daemons, each over every family of the lab.
pub(crate) fn endpoints(lab: &Lab) -> BTreeMap<&'static str, Vec<SocketAddr>> {
    let with = |ips: Vec<IpAddr>, port| ips.into_iter().map(move |ip| SocketAddr::new(ip, port));
    let control_plane = lab.families().filter([plan::CONTROL_PLANE_V4.into(), plan::CONTROL_PLANE_V6.into()]);
    let nodes = || lab.nodes().iter();
    BTreeMap::from([
        ("control-plane", with(control_plane, 15014).collect()),
        ("node-proxy", nodes().flat_map(|node| with(lab.mesh().proxy_pod(node.index()).ips(), 15020)).collect()),
        ("pod-watcher", nodes().flat_map(|node| with(node.ips(), 15025)).collect()),
    ])
}

/// One node of clients and servers, one of servers; what the client counted: connections.
pub(crate) fn talked(lab: &Lab) -> Result<u64> {
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let web = |name: &str, node| lab.add_pod(Pod::new("shop", name).service_account("web").node(node));
    let servers: [PodHandle; 2] = [web("near", 1)?, web("far", 2)?];
    talk::everyone_known(lab, &[&cart, &servers[0], &servers[1]])?;
    let mut answered = 0;
    for to in servers.iter().flat_map(|pod| at(pod, ECHO)) {
        let count = EACH.to_string();
        let report = talk::client(&cart, &["connect", &to.to_string(), "--send", "hello", "--count", &count])?;
        answered += report["ok"].as_u64().context("no count")?;
    }
    ensure!(answered == 4 * EACH, "{answered} of {} connections were answered", 4 * EACH);
    Ok(answered)
}

#[test]
fn debians_prometheus_scrapes_all_daemons_over_both_families_and_sees_what_the_client_counted() -> Result<()> {
    let lab = support::mesh("prometheus")?;
    let connections = talked(&lab)? as f64;
    let targets = endpoints(&lab);
    let prometheus = Prometheus::start(&lab, &targets)?;
    let wanted: usize = targets.values().map(Vec::len).sum();
    ensure!(wanted == 10, "control plane, two proxies and two watchers over two families: {targets:?}");

    let mut seen = Value::Null;
    wait::until_true("every target to be up", CHANGE, || {
        seen = prometheus.get("/api/v1/targets?state=active").unwrap_or_default();
        let all = seen["activeTargets"].as_array();
        all.is_some_and(|all| all.len() == wanted && all.iter().all(|one| one["health"] == "up"))
    })
    .with_context(|| format!("{seen:#}\n{}", prometheus.process.tail(10)))?;

    for of in ["IPv4", "IPv6"] {
        let label = format!("family=\"{of}\"");
        prometheus.comes_to(&format!("sum(up{{{label}}})"), 5.0)?;
        for reporter in ["source", "destination"] {
            let ours = format!(
                "{{{label},reporter=\"{reporter}\",source_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",\
                 destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"}}"
            );
            let sum = |name: &str| format!("sum(istio_tcp_{name}_total{ours})");
            prometheus.comes_to(&sum("connections_opened"), connections)?;
            prometheus.comes_to(&sum("connections_closed"), connections)?;
            prometheus.comes_to(&sum("received_bytes"), connections * SAID as f64)?;
            prometheus.comes_to(&sum("sent_bytes"), connections * SAID as f64)?;
        }
        // What the caller sent and what the called one sent back, of half of the connections each.
        let scope =
            |scope: &str| format!("sum(culvert_pod_bytes_total{{{label},scope=\"{scope}\",direction=\"sent\"}})");
        prometheus.comes_to(&scope("same_node"), connections * SAID as f64)?;
        prometheus.comes_to(&scope("other_node"), connections * SAID as f64)?;
        prometheus.comes_to(&format!("sum(culvert_watcher_enrolments_total{{{label},result=\"captured\"}})"), 3.0)?;
        prometheus.comes_to(&format!("culvert_control_plane_streams_open{{{label}}}"), 2.0)?;
        prometheus.comes_to(&format!("culvert_control_plane_certificates_issued_total{{{label}}}"), 3.0)?;
        // A worker may ask before the control plane has read the pod's record, or has read anything; it asks again.
        let refused = format!("certificates_refused_total{{{label},cause!~\"not_on_node|not_ready\"}}");
        prometheus.comes_to(&format!("sum(culvert_control_plane_{refused})"), 0.0)?;
        prometheus.comes_to(&format!("count(process_cpu_seconds_total{{{label}}})"), 5.0)?;
    }
    figure(
        "series of a lab with 3 pods",
        prometheus.value("count({job!=\"\"})")? / 2.0,
        "series",
        "all daemons, scraped",
    );
    prometheus.process.stop(CHANGE)?;
    Ok(())
}

#[test]
fn promtool_has_nothing_to_say_about_any_page() -> Result<()> {
    let lab = support::mesh("promtool")?;
    talked(&lab)?;
    for (daemon, endpoints) in endpoints(&lab) {
        for to in endpoints {
            let (code, page) = mesh::get(lab.fabric(), to, "/metrics")?;
            ensure!(code == 200 && page.contains("culvert_"), "{daemon} at {to}: {code} {page}");
            lint(&page).with_context(|| format!("{daemon} at {to}"))?;
        }
    }
    // The linter is awake.
    ensure!(lint("# TYPE a_total gauge\na_total 1\n").is_err(), "promtool finds nothing at all");
    Ok(())
}

/// `promtool check metrics`, which must neither fail nor print anything.
fn lint(page: &str) -> Result<()> {
    let mut promtool = Command::new("/usr/bin/promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Debian's promtool: cargo xtask test installs it")?;
    // It reads all before it says anything: no pipe fills up while we write.
    promtool.stdin.take().context("a pipe")?.write_all(page.as_bytes())?;
    let said = promtool.wait_with_output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && text.is_empty(), "{}: {text}", said.status);
    Ok(())
}
