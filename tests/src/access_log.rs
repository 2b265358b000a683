//! The access log keeps out of the way of traffic and tells what it left out: a full disk, a reader that has stopped, samplings,
//! filters, a cap. Counts are exact: what was written and what was lost are together what the client itself counted.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::mesh::WORKER_UID;
use lab::pod::ECHO;
use lab::{Config, Lab, MeshConfig, Pod, PodHandle, wait};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use crate::support::{CHANGE, figure, lab as lab_of};
use crate::talk::{self, at, field};

/// A small disk of the test's own, which the nodes see too because they are made after it.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Result<Disk> {
        ensure!(rustix::process::geteuid().is_root(), "this test needs root: it mounts a tmpfs");
        let dir = tempfile::Builder::new().prefix("culvert-access-log-").tempdir_in("/tmp")?;
        let options = std::ffi::CString::new(format!("size=256k,mode=755,uid={WORKER_UID},gid={WORKER_UID}"))?;
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).context("mount a small tmpfs")?;
        Ok(Disk(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Takes all the room there is; the file that holds it.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.path("filler");
        let mut filler = File::create(&path)?;
        let page = [b'x'; 4096];
        let full = loop {
            if let Err(error) = filler.write_all(&page) {
                break error;
            }
        };
        ensure!(full.kind() == std::io::ErrorKind::StorageFull, "the disk is not full: {full}");
        Ok(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Before its directory is removed. The nodes' own views of it end with the nodes.
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// One node with two pods and a worker with these flags; both ends of each connection are logged there.
fn pair(name: &str, flags: &[&str]) -> Result<(crate::support::Watched, PodHandle, PodHandle)> {
    mesh(name, 1, flags)
}

fn mesh(name: &str, nodes: usize, flags: &[&str]) -> Result<(crate::support::Watched, PodHandle, PodHandle)> {
    let worker_args = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let config = Config::default().name(name).nodes(nodes).mesh(MeshConfig { worker_args, ..MeshConfig::default() });
    let lab = lab_of(config)?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(nodes))?;
    talk::everyone_known(&lab, &[&cart, &web])?;
    Ok((lab, cart, web))
}

/// Makes connections to each address of `to`, which must all succeed; how many.
fn talked(from: &PodHandle, to: &PodHandle, each: usize, what: &str) -> Result<usize> {
    let mut all = 0;
    for address in at(to, ECHO) {
        let begin = Instant::now();
        let count = each.to_string();
        let report = from.run_client(&["connect", &address.to_string(), "--send", "hello", "--count", &count])?;
        ensure!(report["ok"] == each, "{what}: of {each} connections to {address}: {report}");
        let rate = each as f64 / begin.elapsed().as_secs_f64();
        figure(
            &format!("connections to {address}, {what}"),
            format!("{rate:.0}"),
            "per second",
            &report["us"].to_string(),
        );
        all += each;
    }
    Ok(all)
}

/// What a worker says became of its lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    written: usize,
    sampled: usize,
    rate: usize,
    queue_full: usize,
    write_failed: usize,
}

impl Told {
    fn by(lab: &Lab, node: usize) -> Result<Told> {
        let metrics = lab.mesh().worker_metrics(node)?;
        let of = |series: &str| {
            let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("no {series} in\n{metrics}"))
        };
        let lost = |cause: &str| of(&format!("culvert_access_log_dropped_total{{cause=\"{cause}\"}}"));
        Ok(Told {
            written: of("culvert_access_log_written_total")?,
            sampled: lost("sampled")?,
            rate: lost("rate")?,
            queue_full: lost("queue_full")?,
            write_failed: lost("write_failed")?,
        })
    }

    fn lost(self) -> usize {
        self.sampled + self.rate + self.queue_full + self.write_failed
    }

    /// Waits until the worker has told of at least so many lines.
    fn of(lab: &Lab, node: usize, lines: usize) -> Result<Told> {
        let mut last = Told::default();
        wait::until(&format!("{lines} lines to be written or counted"), CHANGE, || {
            last = Told::by(lab, node).ok()?;
            (last.written + last.lost() >= lines).then_some(last)
        })
        .with_context(|| format!("of {lines} lines: {last:?}"))
    }

    /// Of exactly so many.
    fn of_all(lab: &Lab, node: usize, lines: usize) -> Result<Told> {
        let told = Told::of(lab, node, lines)?;
        ensure!(told.written + told.lost() == lines, "{lines} lines, and {told:?}");
        Ok(told)
    }
}

/// Every line of the text, each of which must be whole.
fn whole(text: &str) -> Result<Vec<Value>> {
    ensure!(text.is_empty() || text.ends_with('\n'), "the log ends in half a line: {:?}", text.lines().last());
    text.lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).with_context(|| format!("not a whole line: {line}"))?;
            ensure!(value["duration_us"].is_u64() && value["id"].is_string(), "not a whole line: {line}");
            Ok(value)
        })
        .collect()
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_no_connection() -> Result<()> {
    let disk = Disk::new()?;
    let file = disk.path("access.log");
    let (lab, cart, web) = pair("log-full", &["--access-log-file", &file.to_string_lossy()])?;
    // Each connection has a line at both its ends, both of this node.
    let mut lines = 2 * talked(&cart, &web, 50, "room on the disk")?;
    let before = Told::of_all(&lab, 1, lines)?;
    ensure!(before.lost() == 0, "{before:?} while there was room");
    let filler = disk.fill()?;
    lines += 2 * talked(&cart, &web, 400, "disk full")?;
    // All but the one whose beginning is written and whose rest waits for room.
    let full = Told::of(&lab, 1, lines - 1)?;
    ensure!(full.write_failed > 0 && full.lost() == full.write_failed, "{full:?}");
    fs::remove_file(filler)?;
    lines += 2 * talked(&cart, &web, 20, "room again")?;
    let after = Told::of_all(&lab, 1, lines)?;
    // What is written from here on is written: 80 lines and what fitted into the last page before.
    ensure!(after.written >= before.written + 80, "{before:?} {after:?}");
    let logged = whole(&fs::read_to_string(&file)?)?;
    ensure!(logged.len() == after.written, "{} lines in the file, {after:?}", logged.len());
    figure("lines lost to a full disk", after.lost(), "lines", &format!("of {lines}, {} written", after.written));
    Ok(())
}

#[test]
fn a_reader_that_has_stopped_costs_lines_that_are_counted_and_no_connection() -> Result<()> {
    let disk = Disk::new()?;
    let path = disk.path("reader");
    fifo(&path)?;
    let (lab, cart, web) = pair("log-stuck", &["--access-log-file", &path.to_string_lossy()])?;
    let mut lines = 2 * talked(&cart, &web, 10, "room in the pipe")?;
    // More than the pipe and the queue hold together.
    lines += 2 * talked(&cart, &web, 2500, "reader stopped")?;
    wait::until_true("lines to be lost", CHANGE, || Told::by(&lab, 1).is_ok_and(|told| told.queue_full > 0))?;
    lines += 2 * talked(&cart, &web, 100, "lines being lost")?;
    // The reader is back: what waits comes, whole, and all that follows.
    let mut reader = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&path)?;
    let mut text = Vec::new();
    let mut told_of = |lines: usize| {
        let mut last = Told::default();
        wait::until_true("every line to be written or counted", CHANGE, || {
            last = Told::by(&lab, 1).unwrap_or(last);
            // That there is nothing just now is an error of its own; what was read before it is kept.
            let _ = reader.read_to_end(&mut text);
            last.written + last.lost() >= lines
        })
        .with_context(|| format!("of {lines} lines: {last:?}"))?;
        Ok::<_, anyhow::Error>(last)
    };
    told_of(lines)?;
    lines += 2 * talked(&cart, &web, 10, "reader back")?;
    let told = told_of(lines)?;
    ensure!(told.written + told.lost() == lines, "{lines} lines, and {told:?}");
    let logged = whole(&String::from_utf8(text)?)?;
    ensure!(logged.len() == told.written && told.lost() == told.queue_full, "{} lines read, {told:?}", logged.len());
    figure("lines lost to a stopped reader", told.lost(), "lines", &format!("of {lines}, {} written", told.written));
    Ok(())
}

fn fifo(path: &Path) -> Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    Ok(chown(path, Some(WORKER_UID), Some(WORKER_UID))?)
}

/// As the flags of an open want it.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

#[test]
fn sampling_keeps_the_same_connections_at_both_ends_and_every_refusal() -> Result<()> {
    let (lab, cart, web) = mesh("log-sample", 2, &["--access-log-sample", "ok=5"])?;
    let made = talked(&cart, &web, 200, "sampled")?;
    let kept = |node: usize| -> Result<Vec<String>> {
        let told = Told::of_all(&lab, node, made)?;
        ensure!(
            told.lost() == told.sampled && told.written > 0 && told.sampled > told.written,
            "node {node}: {told:?}"
        );
        let mut ids: Vec<String> =
            lab.mesh().access_log(node).iter().map(|line| field(line, "id").to_owned()).collect();
        ensure!(ids.len() == told.written, "node {node}: {} lines, {told:?}", ids.len());
        ids.sort();
        Ok(ids)
    };
    let (near, far) = (kept(1)?, kept(2)?);
    ensure!(near == far, "the ends kept different connections: {near:?} {far:?}");
    figure("connections kept by ok=5", near.len(), "lines", &format!("of {made}, at each end"));
    lab.apply("deny", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: deny}\nspec: {action: DENY, rules: [{}]}\n")?;
    talk::policy_arrived(&lab, "shop/deny")?;
    let refused = |node| lab.mesh().access_log(node).iter().filter(|line| line["outcome"] == "refused").count();
    for to in at(&web, ECHO) {
        talk::until(&cart, to, talk::Met::Refused)?;
        let begin = (wait_still(|| refused(1))?, wait_still(|| refused(2))?);
        let report = cart.run_client(&["connect", &to.to_string(), "--send", "hello", "--count", "20"])?;
        ensure!(report["ok"] == 0, "{report}");
        let all = || (refused(1), refused(2)) == (begin.0 + 20, begin.1 + 20);
        wait::until_true("each refusal at both ends", CHANGE, all)
            .with_context(|| format!("from {begin:?} to {:?}", (refused(1), refused(2))))?;
    }
    Ok(())
}

/// The count once the lines of what has ended are out: the same in two looks that lie a whole batch apart.
fn wait_still(count: impl Fn() -> usize) -> Result<usize> {
    let (mut last, mut since) = (count(), Instant::now());
    wait::until("the log to be still", CHANGE, || {
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= 10 * std::time::Duration::from_millis(100)).then_some(now)
    })
}

#[test]
fn a_filter_leaves_only_what_it_names_and_start_lines_pair_with_end_lines() -> Result<()> {
    let flags = ["--access-log-start", "--access-log-filter", "direction=outbound pod=shop/cart"];
    let (lab, cart, web) = pair("log-filter", &flags)?;
    let stranger = lab.add_pod(Pod::new("shop", "other").service_account("other"))?;
    talk::everyone_known(&lab, &[&stranger])?;
    talked(&stranger, &web, 5, "filtered out")?;
    let made = talked(&cart, &web, 15, "wanted")?;
    let told = Told::of_all(&lab, 1, 2 * made)?;
    ensure!(told.lost() == 0, "{told:?}");
    let lines = lab.mesh().access_log(1);
    ensure!(lines.len() == 2 * made, "{} lines for {made} connections", lines.len());
    for line in &lines {
        ensure!(line["direction"] == "outbound" && line["source_pod"] == "shop/cart", "{line}");
    }
    let (starts, ends): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line["event"] == "start");
    ensure!(starts.len() == made && ends.iter().all(|line| line["event"] == "end" && line["outcome"] == "ok"));
    for start in starts {
        ensure!(ends.iter().any(|end| end["id"] == start["id"]), "no end of {start}");
        ensure!(field(start, "destination_identity").ends_with("/sa/web"), "{start}");
        ensure!(start.get("outcome").is_none() && start["connected_us"].is_u64(), "{start}");
    }
    for end in ends {
        let at = |key: &str| end[key].as_u64().with_context(|| format!("no {key} in {end}"));
        let times = [at("served_us")?, at("judged_us")?, at("connected_us")?, at("first_byte_us")?, at("duration_us")?];
        ensure!(times.is_sorted(), "{end}");
    }
    Ok(())
}

#[test]
fn a_cap_lets_its_burst_pass_and_counts_the_rest_exactly() -> Result<()> {
    let (lab, cart, web) = pair("log-rate", &["--access-log-rate", "1", "--access-log-burst", "7"])?;
    let begin = Instant::now();
    let made = talked(&cart, &web, 100, "capped")?;
    let took = begin.elapsed();
    let told = Told::of_all(&lab, 1, 2 * made)?;
    ensure!(told.lost() == told.rate, "{told:?}");
    let most = 7 + took.as_secs() as usize + 1;
    ensure!((7..=most).contains(&told.written), "{told:?} in {took:?}");
    let lines = lab.mesh().access_log(1).len();
    ensure!(lines == told.written, "{lines} lines, {told:?}");
    Ok(())
}

#[test]
fn a_file_that_was_rotated_away_is_opened_again_on_sighup() -> Result<()> {
    let disk = Disk::new()?;
    let (file, old) = (disk.path("access.log"), disk.path("access.log.1"));
    let (lab, cart, web) = pair("log-hup", &["--access-log-file", &file.to_string_lossy()])?;
    let made = 2 * talked(&cart, &web, 10, "before the rotation")?;
    Told::of_all(&lab, 1, made)?;
    let worker = lab.mesh().worker_child(1)?;
    fs::rename(&file, &old)?;
    lab.mesh().worker(1).signal(rustix::process::Signal::HUP)?;
    wait::until_true("the file under its name", CHANGE, || file.exists())?;
    let more = 2 * talked(&cart, &web, 10, "after the rotation")?;
    Told::of_all(&lab, 1, made + more)?;
    ensure!(lab.mesh().worker_child(1)?.pid == worker.pid, "SIGHUP ended the worker");
    for (path, lines) in [(old, made), (file, more)] {
        let logged = whole(&fs::read_to_string(&path)?)?.len();
        ensure!(logged == lines, "{logged} lines in {}, not {lines}", path.display());
    }
    Ok(())
}
