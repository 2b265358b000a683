//! What each process may do is what the design's table says, on every thread; and the worker at its memory limit takes nobody along.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::mesh::{CONTROL_PLANE_UID, WORKER_UID};
use lab::pod::{ECHO, HOLD};
use lab::{Config, Lab, MeshConfig, Pid, Pod, wait};

use crate::support::{CHANGE, at, figure, lab, mesh};

const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// One row of the table in ARCHITECTURE.md.
struct Row {
    process: &'static str,
    pid: Pid,
    uid: u32,
    caps: u64,
    seccomp: bool,
}

fn table(lab: &Lab) -> Result<Vec<Row>> {
    let mesh = lab.mesh();
    let row = |process, pid, uid, caps, seccomp| Row { process, pid, uid, caps, seccomp };
    let mut rows = vec![row("control-plane", mesh.control_plane().id(), CONTROL_PLANE_UID, 0, false)];
    for node in [1, 2] {
        rows.push(row("pod-watcher", mesh.watcher(node).id(), 0, SYS_ADMIN | NET_ADMIN | SYS_PTRACE, false));
        rows.push(row("node-proxy keeper", mesh.keeper(node).id(), 0, SYS_ADMIN | NET_ADMIN, true));
        rows.push(row("node-proxy worker, the supervisor", mesh.worker(node).id(), WORKER_UID, 0, false));
        rows.push(row("node-proxy worker", mesh.worker_child(node)?, WORKER_UID, 0, true));
    }
    Ok(rows)
}

/// Compares every thread of a process with its row; how many there are.
fn compare(row: &Row) -> Result<usize> {
    let tasks: Vec<PathBuf> = std::fs::read_dir(format!("/proc/{}/task", row.pid.pid))?
        .map(|task| Ok(task?.path()))
        .collect::<Result<_>>()?;
    for task in &tasks {
        let Ok(text) = std::fs::read_to_string(task.join("status")) else { continue }; // a thread that has just ended
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
        };
        let caps = format!("{:016x}", row.caps);
        let ids = vec![row.uid.to_string(); 4].join(" ");
        let wanted = [
            ("Uid", ids.as_str()),
            ("Gid", ids.as_str()),
            ("Groups", ""),
            ("CapEff", &caps),
            ("CapPrm", &caps),
            ("CapBnd", &caps),
            ("CapAmb", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", if row.seccomp { "2" } else { "0" }),
        ];
        for (name, wanted) in wanted {
            let is = field(name);
            ensure!(is == wanted, "{} ({}): {name} is {is:?}, not {wanted:?}", row.process, task.display());
        }
    }
    Ok(tasks.len())
}

#[test]
fn every_process_has_the_user_the_capabilities_and_the_filters_of_the_table_and_no_more() -> Result<()> {
    let lab = mesh("powers")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    // At work, so that threads which come with work are there.
    for ip in web.ips() {
        ensure!(cart.run_client(&["connect", &at(ip, ECHO), "--send", "hello"])?["ok"] == 1);
    }
    let rows = table(&lab)?;
    for row in &rows {
        compare(row)?;
    }
    // The table is not met by whatever there is: with a capability less, or as another user, it is not this process.
    for row in rows {
        ensure!(compare(&Row { caps: row.caps ^ NET_ADMIN, ..row }).is_err(), "{}: caps are not compared", row.process);
    }
    lab.down()
}

/// The group of a container of the node-proxy pod on node 1, where the machine limits memory.
fn group(lab: &Lab, container: &str) -> Result<PathBuf> {
    let pod = lab.mesh().proxy_pod(1).uid();
    let below = format!("culvert-lab/{}/node-1/kubepods/besteffort/pod{pod}/{container}", lab.name());
    let mounts = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let groups = mounts.iter().map(|mount| Path::new(mount).join(&below));
    groups
        .into_iter()
        .find(|group| group.join("memory.limit_in_bytes").exists() || group.join("memory.max").exists())
        .with_context(|| format!("no memory controller has the group {below}"))
}

/// How many processes the kernel has killed in a group for want of memory.
fn oom_kills(group: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(group.join("memory.oom_control"))
        .or_else(|_| std::fs::read_to_string(group.join("memory.events")))?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.with_context(|| format!("no count of kills in {text:?}"))
}

#[test]
fn a_worker_at_its_memory_limit_is_killed_alone_and_comes_back() -> Result<()> {
    const LIMIT: u64 = 14 << 20;
    let config = MeshConfig { worker_memory: Some(LIMIT), ..MeshConfig::default() };
    let lab = lab(Config::default().name("oom").mesh(config))?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    let to = at(web.ips()[0], ECHO);
    ensure!(cart.run_client(&["connect", &to, "--send", "hello"])?["ok"] == 1);
    let (keeper, supervisor, old) = (lab.mesh().keeper(1).id(), lab.mesh().worker(1).id(), lab.mesh().worker_child(1)?);
    let group_of_worker = group(&lab, "worker")?;
    ensure!(oom_kills(&group_of_worker)? == 0, "killed before anything was asked of it");

    // Thousands of connections that stay open: each costs the worker memory.
    let hold = at(web.ips()[0], HOLD);
    let holders = cart.client("holders", &["probe", &hold, "--rate", "1500", "--echo", "--timeout", "30000"])?;
    let killed = wait::until_true("the kernel to kill the worker", Duration::from_secs(30), || {
        oom_kills(&group_of_worker).is_ok_and(|kills| kills > 0) && !old.is_alive()
    });
    holders.kill()?;
    killed.with_context(|| format!("its memory: {:?} of {LIMIT}", old.pss()))?;

    wait::until_true("another worker", CHANGE, || lab.mesh().worker_child(1).is_ok_and(|new| new != old))?;
    lab.mesh().wait_ready(1)?;
    ensure!(lab.mesh().keeper(1).id() == keeper && keeper.is_alive(), "the keeper went with it");
    ensure!(supervisor.is_alive(), "the supervisor went with it");
    ensure!(oom_kills(&group(&lab, "keeper")?)? == 0, "the keeper's group was hit");
    let seen = cart.run_client(&["connect", &to, "--send", "hello", "--count", "5"])?;
    ensure!(seen["ok"] == 5, "after the kill: {seen}");
    figure(
        "worker_oom_kills",
        oom_kills(&group_of_worker)?,
        "kills",
        "limit 14 MiB, connections held open until it was reached",
    );
    lab.down()
}
