//! The lab without a mesh: nodes, pods through the reference CNI chain, direct traffic, and nothing left behind.
//! Needs root and the Debian packages of `lab::binaries::PACKAGES`.

use anyhow::Result;
use lab::{Config, Families, Lab, Pod, Service, pod};
use serde_json::json;

#[test]
fn pods_on_two_nodes_reach_each_other_directly_over_both_families() -> Result<()> {
    let lab = Lab::up(Config::default())?;
    let a = lab.add_pod(Pod::new("shop", "a"))?;
    let b = lab.add_pod(Pod::new("shop", "b").node(2))?;
    let near = lab.add_pod(Pod::new("shop", "near"))?;
    assert_eq!(a.ips().len(), 2);
    for (from, to) in [(&a, &b), (&b, &a), (&a, &near)] {
        for ip in to.ips() {
            let at = |port: u16| std::net::SocketAddr::new(ip, port).to_string();
            let echo = from.run_client(&["connect", &at(pod::ECHO), "--send", "hello"])?;
            assert_eq!((&echo["ok"], &echo["text"]), (&json!(1), &json!("hello")), "{echo}");
            let who = from.run_client(&["connect", &at(pod::WHOAMI), "--expect", "0"])?;
            let peer = who["text"].as_str().unwrap_or_default().to_owned();
            let own = from.ips().into_iter().find(|own| own.is_ipv4() == ip.is_ipv4()).expect("same family");
            assert!(peer.contains(&own.to_string()), "{} saw {peer}", to.key());
            let bulk = from.run_client(&["bulk", &at(pod::BULK), "--up", "3000000", "--down", "2000000"])?;
            assert_eq!(bulk["ok"], 1, "{bulk}");
            let greet = from.run_client(&["connect", &at(pod::GREET), "--expect", "6"])?;
            assert_eq!(greet["text"], "hello ", "{greet}");
            let reset = from.run_client(&["connect", &at(pod::RESET), "--expect", "1"])?;
            assert_eq!(reset["outcomes"]["reset"], 1, "{reset}");
            assert_eq!(from.run_client(&["udp", &at(pod::ECHO)])?["ok"], 1);
        }
    }
    assert_eq!(b.stats().port(pod::ECHO).bytes, 2 * 5);
    lab.down()
}

#[test]
fn without_a_mesh_a_virtual_address_leads_nowhere_and_a_headless_name_to_its_pods() -> Result<()> {
    let lab = Lab::up(Config::default())?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2).probe(pod::HTTP))?;
    let client = lab.add_pod(Pod::new("shop", "client"))?;
    lab.service(Service::new("shop", "web").port(80, pod::HTTP))?;
    lab.service(Service::new("shop", "web-pods").headless().selector("app", "web").port(80, pod::HTTP))?;
    let vip = client.run_client(&["connect", "web:80", "--timeout", "1000"])?;
    assert_eq!(vip["ok"], 0, "{vip}");
    let page = client.exec(&["curl", "-s", &format!("http://web-pods.shop.svc.cluster.local:{}/", pod::HTTP)])?.ok()?;
    assert!(page.contains("hello from web"), "{page}");
    let slices = std::fs::read_to_string(lab.dir().join("manifests/svc-shop-web.yml"))?;
    assert!(slices.contains(&web.v4().to_string()) && slices.contains(&web.v6().to_string()), "{slices}");
    lab.remove_pod(&web)?;
    let slices = std::fs::read_to_string(lab.dir().join("manifests/svc-shop-web.yml"))?;
    assert!(!slices.contains(&web.ips()[0].to_string()), "{slices}");
    lab.down()
}

#[test]
fn the_capture_finds_plaintext_on_the_fabric() -> Result<()> {
    let lab = Lab::up(Config::default().families(Families::V4))?;
    let a = lab.add_pod(Pod::new("shop", "a"))?;
    let b = lab.add_pod(Pod::new("shop", "b").node(2))?;
    let capture = lab.capture(&[b"find-me-in-clear"])?;
    let to = format!("{}:{}", b.v4(), pod::BULK);
    let bulk = a.run_client(&["bulk", &to, "--up", "5000000", "--down", "5000000", "--marker", "find-me-in-clear"])?;
    assert_eq!(bulk["ok"], 1, "{bulk}");
    let flows = capture.flows()?;
    let between = |port: u16| flows.iter().filter(move |(e, _)| e.has_port(port));
    let payload: u64 = between(pod::BULK).map(|(_, f)| f.payload).sum();
    // More when TCP sent something twice.
    assert!((10_000_000..12_000_000).contains(&payload), "{flows:?}");
    assert_eq!(between(pod::BULK).map(|(_, f)| f.markers).sum::<u64>(), 1);
    lab.down()
}

#[test]
fn a_node_that_lost_its_power_comes_back_with_its_pods() -> Result<()> {
    let lab = Lab::up(Config::default())?;
    let a = lab.add_pod(Pod::new("shop", "a"))?;
    let b = lab.add_pod(Pod::new("shop", "b").node(2))?;
    let uid = b.uid();
    lab.node(2).power_cut()?;
    assert!(b.app().is_some_and(|app| !app.is_alive()));
    lab.boot(2)?;
    assert_eq!(b.uid(), uid);
    let echo = a.run_client(&["connect", &format!("{}:{}", b.v4(), pod::ECHO), "--send", "hello"])?;
    assert_eq!(echo["ok"], 1, "{echo}");
    lab.down()
}

#[test]
fn a_lab_whose_process_was_killed_is_swept_away_by_the_next_one() -> Result<()> {
    let name = format!("swept-{}", std::process::id());
    let mut up = std::process::Command::new(env!("CARGO_BIN_EXE_culvert-lab"));
    let mut story = up.args(["--no-mesh", "--name", &name]).stdout(std::process::Stdio::null()).spawn()?;
    let pods = lab::state::Dir::of(&name)?.join("init/fabric.json");
    lab::wait::until_true("the lab to begin", std::time::Duration::from_secs(10), || pods.exists())?;
    story.kill()?;
    story.wait()?;
    Lab::up(Config::default().nodes(1))?.down()?;
    assert_eq!(lab::state::leftovers(&name), Vec::<String>::new());
    Ok(())
}

#[test]
fn processes_get_exactly_the_user_and_capabilities_asked_and_their_own_memory_limit() -> Result<()> {
    use lab::{Program, User};
    let lab = Lab::up(Config::default().nodes(1))?;
    let idle = ["culvert-lab", "pause"];
    let check = |name: &str, user: User, uid: &str, caps: &str, privs: &str| -> Result<()> {
        let process = lab.node(1).spawn(Program::new(name, &idle).as_user(user).memory_limit(32 << 20))?;
        process.wait_stdout("ready", std::time::Duration::from_secs(5))?;
        let id = process.id();
        assert_eq!(id.status("Uid").as_deref(), Some(uid), "{name}");
        assert_eq!(
            (id.status("CapBnd").as_deref(), id.status("CapPrm").as_deref()),
            (Some(caps), Some(caps)),
            "{name}"
        );
        assert_eq!(
            (id.status("CapEff").as_deref(), id.status("CapAmb").as_deref()),
            (Some(caps), Some("0000000000000000"))
        );
        assert_eq!(id.status("NoNewPrivs").as_deref(), Some(privs), "{name}");
        process.kill()
    };
    check("plain", User::plain(65532), "65532\t65532\t65532\t65532", "0000000000000000", "1")?;
    let keeper = User::root().with_caps(&["SYS_ADMIN", "NET_ADMIN"]);
    check("keeper", keeper, "0\t0\t0\t0", "0000000000201000", "0")?;
    let mut boxed = Program::new("boxed", &["sh", "-c", "touch /x; ls /run/netns | wc -l; touch /run/y && echo wrote"]);
    boxed.mounts.read_only_root = true;
    boxed.mounts.hide.push("/run/netns".into());
    let boxed = lab.node(1).spawn(boxed)?;
    assert!(boxed.wait(std::time::Duration::from_secs(5))?.success(), "{}", boxed.log());
    assert!(boxed.log().contains("Read-only file system"), "{}", boxed.log());
    assert_eq!(boxed.stdout(), "0\nwrote\n");
    let hungry = lab.node(1).spawn(Program::new("hungry", &["head", "-c", "200M", "/dev/zero"]).memory_limit(8 << 20));
    assert!(hungry?.wait(std::time::Duration::from_secs(10))?.success(), "reading and writing needs no memory");
    let tail = lab.node(1).spawn(
        Program::new("greedy", &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]).memory_limit(8 << 20),
    )?;
    assert_eq!(tail.wait(std::time::Duration::from_secs(20))?, lab::Exit::Signal(9));
    lab.down()
}

#[test]
fn a_pod_gets_the_addresses_it_asks_for_and_a_prober_counts_the_phases_of_its_life() -> Result<()> {
    let lab = Lab::up(Config::default())?;
    let from = lab.add_pod(Pod::new("shop", "from"))?;
    let ips: Vec<std::net::IpAddr> = vec!["198.18.2.77".parse()?, "fd77:0:0:2::77".parse()?];
    let to = format!("{}:{}", ips[0], pod::ECHO);
    let prober = from.client("prober", &["probe", &to, "--rate", "200", "--echo"])?;
    prober.wait_stdout("ready", std::time::Duration::from_secs(5))?;
    let target = lab.add_pod(Pod::new("shop", "target").node(2).ips(ips.clone()))?;
    assert_eq!(target.ips(), ips);
    prober.write_line("running")?;
    let connections = || target.stats().port(pod::ECHO).connections;
    lab::wait::until_true("the prober to be served", std::time::Duration::from_secs(5), || connections() > 20)?;
    let counted = target.host_veth();
    assert!(counted.is_some_and(|veth| lab.node(2).exec(&["ip", "link", "show", &veth]).is_ok()));
    lab.remove_pod(&target)?;
    prober.write_line("gone")?;
    prober.close_stdin();
    assert!(prober.wait(std::time::Duration::from_secs(5))?.success());
    let out = prober.stdout();
    let report: serde_json::Value = serde_json::from_str(out.lines().last().unwrap_or_default())?;
    let phases: Vec<&str> =
        report["phases"].as_array().into_iter().flatten().filter_map(|p| p["phase"].as_str()).collect();
    assert_eq!(phases[..2], ["start", "running"], "{report}");
    assert!(report["ok"].as_u64() > Some(20), "{report}");
    lab.down()
}

#[test]
fn the_capture_of_the_command_line_looks_for_as_long_as_it_was_asked_to() -> Result<()> {
    let lab = Lab::up(Config::default().families(Families::V4))?;
    let a = lab.add_pod(Pod::new("shop", "a"))?;
    let b = lab.add_pod(Pod::new("shop", "b").node(2))?;
    let start = std::time::Instant::now();
    let capture = std::process::Command::new(env!("CARGO_BIN_EXE_culvert-lab"))
        .args(["capture", "--name", lab.name(), "--for", "3", "--marker", "seen-in-clear"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let to = std::net::SocketAddr::new(b.v4(), pod::ECHO).to_string();
    while start.elapsed().as_millis() < 2_500 {
        assert_eq!(a.run_client(&["connect", &to, "--send", "seen-in-clear"])?["ok"], 1);
    }
    let output = capture.wait_with_output()?;
    assert!(start.elapsed().as_secs() >= 3, "{:?}", start.elapsed());
    let table = String::from_utf8(output.stdout)?;
    let seen = table.lines().any(|line| line.contains(&to) && line.contains(&a.v4().to_string()));
    assert!(output.status.success() && seen, "{table}");
    lab.down()
}
