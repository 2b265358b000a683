//! The keeper's counts on the link to pod-watcher, byte for byte: an ability beside version 1, frozen as that is (see `link_v1.rs`).

use mesh_api::link::proxy::{FromKeeper, KeeperStats, STATS, ToKeeper};
use mesh_api::link::{Hello, decode, encode};

fn stats() -> KeeperStats {
    KeeperStats {
        mint_requests: 9,
        minted: 500,
        mint_short: [("Overloaded".to_owned(), 2)].into(),
        refused: [("Conflict".to_owned(), 1)].into(),
        listeners_opened: 30,
        listeners_handed: 60,
        workers: 2,
        workers_lost: 1,
        worker_up: true,
        pods: 10,
        spare_diag: 4,
        certificates_kept: true,
        cpu_micros: 1_234_567,
        resident_bytes: 4_096_000,
        open_fds: 60,
        max_fds: 1_048_576,
        start_millis: 1_700_000_000_123,
        version: "0.1.0".to_owned(),
    }
}

const BYTES: &str = r#"{"stats":{"mint_requests":9,"minted":500,"mint_short":{"Overloaded":2},"refused":{"Conflict":1},"listeners_opened":30,"listeners_handed":60,"workers":2,"workers_lost":1,"worker_up":true,"pods":10,"spare_diag":4,"certificates_kept":true,"cpu_micros":1234567,"resident_bytes":4096000,"open_fds":60,"max_fds":1048576,"start_millis":1700000000123,"version":"0.1.0"}}"#;

#[test]
fn the_keeper_s_counts_are_what_they_were() {
    let read: FromKeeper = decode("fixture", BYTES.as_bytes()).expect("the frozen bytes are read");
    assert_eq!(read, FromKeeper::Stats(stats()));
    assert_eq!(String::from_utf8_lossy(&encode(&FromKeeper::Stats(stats()))), BYTES);
}

#[test]
fn counts_of_another_version_are_read_as_far_as_they_are_known() {
    let later = br#"{"stats":{"minted":7,"of_a_later_version":{"a":[1]}}}"#;
    let read: FromKeeper = decode("fixture", later).expect("what is unknown is passed over, what is missing is zero");
    assert_eq!(read, FromKeeper::Stats(KeeperStats { minted: 7, ..KeeperStats::default() }));
}

#[test]
fn the_ability_is_named_in_the_greeting_and_a_greeting_without_it_is_an_older_one_s() {
    let hello = ToKeeper::Hello(Hello::of("pod-watcher").with(STATS));
    let bytes = r#"{"hello":{"component":"pod-watcher","oldest":1,"newest":1,"capabilities":["keeper-stats"]}}"#;
    assert_eq!(String::from_utf8_lossy(&encode(&hello)), bytes);
    assert!(matches!(hello, ToKeeper::Hello(hello) if hello.can(STATS) && hello.agree().is_ok()));
    let older = br#"{"hello":{"component":"pod-watcher","oldest":1,"newest":1,"capabilities":[]}}"#;
    let older: ToKeeper = decode("fixture", older).expect("version 1");
    assert!(matches!(older, ToKeeper::Hello(hello) if !hello.can(STATS) && hello.agree().is_ok()));
}
