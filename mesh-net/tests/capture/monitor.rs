//! Who changed what, and how soon we hear of it.

use std::time::{Duration, Instant};

use mesh_net::capture::{Changed, Mode, Monitor, Stage};

use crate::bed::{Bed, spec};
use crate::drift::TAMPERING;

const HEARD: Duration = Duration::from_millis(100);

/// Runs a script beside the monitor; answers how long after its end the change was heard (zero: before), and by whom.
async fn heard(bed: &Bed, monitor: &mut Monitor, script: &str) -> (Duration, Vec<mesh_net::capture::Change>) {
    let ended = {
        let netns = bed.pod.try_clone().unwrap();
        let script = script.to_owned();
        tokio::task::spawn_blocking(move || {
            crate::bed::sh(&netns, &script);
            Instant::now()
        })
    };
    let first =
        tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.expect("something was heard").unwrap();
    let at = Instant::now();
    let ended = ended.await.unwrap();
    let mut all = vec![first];
    while let Ok(more) = tokio::time::timeout(Duration::from_millis(60), monitor.changed()).await {
        all.push(more.unwrap());
    }
    (at.saturating_duration_since(ended), all)
}

#[tokio::test]
async fn each_tampering_is_heard_at_once_and_the_author_named() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let mut monitor = Monitor::open(&bed.pod).unwrap();
    monitor.known(&session);
    let mut slowest = Duration::ZERO;
    let (mut named, mut nameless) = (0, 0);
    for (script, _) in TAMPERING {
        let (late, changes) = heard(&bed, &mut monitor, script).await;
        slowest = slowest.max(late);
        assert!(late < HEARD, "{script}: {late:?}");
        let author = if script.starts_with("nft") { "nft" } else { "ip" };
        for change in &changes {
            assert!(!change.own, "{script}: {change:?}");
            // nf_tables tells it itself; `ip` is often gone before it can be asked for its name.
            match &change.by {
                Some(by) => assert_eq!(by.name, author, "{script}: {change:?}"),
                None => assert_eq!(author, "ip", "{script}: {change:?}"),
            }
            *if change.by.is_some() { &mut named } else { &mut nameless } += 1;
        }
        session.apply(&spec(Stage::Redirect)).unwrap();
        let own = tokio::time::timeout(HEARD, monitor.changed()).await.expect("our repair is heard too").unwrap();
        assert!(own.own, "{script}: {own:?}");
        while let Ok(more) = tokio::time::timeout(Duration::from_millis(30), monitor.changed()).await {
            assert!(more.unwrap().own, "{script}");
        }
    }
    eprintln!(
        "heard at most {slowest:?} after the end of the command; {named} authors by name, {nameless} (all `ip`) gone unnamed"
    );
}

#[tokio::test]
async fn a_pid_of_another_namespace_names_nobody() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Plain, Stage::Redirect);
    let mut monitor = Monitor::open(&bed.pod).unwrap();
    // Pid 1 there; pid 1 here is somebody else.
    bed.pod_sh("unshare --pid --fork --mount-proc sh -c 'exec ip rule add pref 8 lookup main'");
    let change = tokio::time::timeout(HEARD, monitor.changed()).await.unwrap().unwrap();
    assert_eq!((change.what, change.by), (vec![Changed::IpRule], None));
}

#[tokio::test]
async fn what_is_none_of_our_business_is_not_told() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let mut monitor = Monitor::open(&bed.pod).unwrap();
    bed.pod_sh("nft add table inet theirs; nft add chain inet theirs c; ip route add 10.0.0.0/8 via 198.18.9.1; nft flush ruleset");
    assert!(tokio::time::timeout(Duration::from_millis(200), monitor.changed()).await.is_err());
    bed.pod_sh("ip rule add pref 7 lookup main");
    let change = tokio::time::timeout(HEARD, monitor.changed()).await.unwrap().unwrap();
    assert_eq!(change.what, vec![Changed::IpRule]);
}

#[tokio::test]
async fn lost_notifications_are_an_unknown_change() {
    let bed = Bed::new();
    let mut monitor = Monitor::open(&bed.pod).unwrap();
    // Far more than the socket's queue holds, while nobody reads.
    bed.pod_sh(
        "nft add table inet culvert; nft add chain inet culvert c; \
         (for i in $(seq 3000); do echo \"add rule inet culvert c counter accept comment \\\"$i\\\"\"; done) | nft -f -",
    );
    let mut seen = Vec::new();
    while let Ok(change) = tokio::time::timeout(HEARD, monitor.changed()).await {
        seen.extend(change.unwrap().what);
    }
    assert!(seen.contains(&Changed::Unknown), "{seen:?}");
}
