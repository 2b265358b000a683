//! Version 1 of the links, byte for byte. These bytes are frozen: processes of two versions live side by side in every upgrade.
//!
//! A failure here means that a change broke version 1. Do not mend the bytes: make the change a new version, add its fixtures in a
//! file of their own, and let this one stand until version 1 is no longer spoken. Fields may be added if they have a default; then
//! encoding may change and only the first of the two checks applies to the old bytes.

use std::fmt::Debug;
use std::net::IpAddr;

use mesh_api::link::cni::{Attachment, CniFailure, FromWatcher, ToWatcher};
use mesh_api::link::proxy::{FromKeeper, Refused, ToKeeper};
use mesh_api::link::worker::{Family, FromWorker, Purpose, ToWorker};
use mesh_api::link::{Hello, NodeFacts, PodFacts, decode, encode};
use mesh_model::Reason;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &str, message: M) {
    let read: M = decode("fixture", bytes.as_bytes()).unwrap_or_else(|error| panic!("{bytes} is not read: {error:?}"));
    assert_eq!(read, message, "{bytes} means something else now");
    assert_eq!(String::from_utf8_lossy(&encode(&message)), bytes, "{message:?} is written otherwise now");
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn hello() -> Hello {
    Hello { component: "keeper".to_owned(), oldest: 1, newest: 1, capabilities: vec!["x".to_owned()] }
}

const HELLO: &str = r#"{"hello":{"component":"keeper","oldest":1,"newest":1,"capabilities":["x"]}}"#;

fn pod() -> PodFacts {
    PodFacts {
        uid: "0c2a-1".to_owned(),
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        service_account: "default".to_owned(),
        addresses: vec![ip("198.18.1.2"), ip("fd77:0:0:1::2")],
        mark: 2_147_483_647,
        probe_ports: vec![8080],
    }
}

const POD: &str = r#"{"uid":"0c2a-1","namespace":"shop","name":"cart","service_account":"default","addresses":["198.18.1.2","fd77:0:0:1::2"],"mark":2147483647,"probe_ports":[8080]}"#;

fn node() -> NodeFacts {
    NodeFacts { name: "node-1".to_owned(), addresses: vec![ip("198.19.255.11")] }
}

const NODE: &str = r#"{"node":{"name":"node-1","addresses":["198.19.255.11"]}}"#;

fn attachment() -> Attachment {
    Attachment {
        container_id: "c1".to_owned(),
        ifname: "eth0".to_owned(),
        pod_namespace: "shop".to_owned(),
        pod_name: "cart".to_owned(),
        pod_uid: "0c2a-1".to_owned(),
        addresses: vec![ip("198.18.1.2")],
    }
}

const ATTACHMENT: &str = r#"{"container_id":"c1","ifname":"eth0","pod_namespace":"shop","pod_name":"cart","pod_uid":"0c2a-1","addresses":["198.18.1.2"]}"#;

#[test]
fn the_plugin_s_messages_are_what_they_were() {
    check(HELLO, ToWatcher::Hello(hello()));
    check(&format!(r#"{{"add":{ATTACHMENT}}}"#), ToWatcher::Add(attachment()));
    check(&format!(r#"{{"check":{ATTACHMENT}}}"#), ToWatcher::Check(attachment()));
    check(&format!(r#"{{"del":{ATTACHMENT}}}"#), ToWatcher::Del(attachment()));
    let valid = vec![("c1".to_owned(), "eth0".to_owned())];
    check(r#"{"gc":{"valid":[["c1","eth0"]]}}"#, ToWatcher::Gc { valid });
}

#[test]
fn the_plugin_s_answers_are_what_they_were() {
    check(HELLO, FromWatcher::Hello(hello()));
    check(r#"{"done":{"enrolled":true}}"#, FromWatcher::Done { enrolled: true });
    let failure =
        CniFailure { code: 11, msg: "m".to_owned(), details: "d".to_owned(), reason: Reason::LinkDown.to_string() };
    check(r#"{"failed":{"code":11,"msg":"m","details":"d","reason":"LinkDown"}}"#, FromWatcher::Failed(failure));
}

#[test]
fn the_watcher_s_messages_to_the_keeper_are_what_they_were() {
    check(HELLO, ToKeeper::Hello(hello()));
    check(NODE, ToKeeper::Node(node()));
    check(r#""diag""#, ToKeeper::Diag);
    check(&format!(r#"{{"add":{{"id":7,"pod":{POD}}}}}"#), ToKeeper::Add { id: 7, pod: pod() });
    check(&format!(r#"{{"update":{{"id":7,"pod":{POD}}}}}"#), ToKeeper::Update { id: 7, pod: pod() });
    let del = ToKeeper::Del { id: 7, uid: "0c2a-1".to_owned(), drain: true };
    check(r#"{"del":{"id":7,"uid":"0c2a-1","drain":true}}"#, del);
    check(r#"{"snapshot_end":{"id":18446744073709551615}}"#, ToKeeper::SnapshotEnd { id: u64::MAX });
}

#[test]
fn the_keeper_s_answers_to_the_watcher_are_what_they_were() {
    check(HELLO, FromKeeper::Hello(hello()));
    check(r#"{"ack":{"id":7,"refused":null}}"#, FromKeeper::Ack { id: 7, refused: None });
    let refused = Some(Refused { reason: Reason::Conflict.to_string(), message: "m".to_owned() });
    check(r#"{"ack":{"id":7,"refused":{"reason":"Conflict","message":"m"}}}"#, FromKeeper::Ack { id: 7, refused });
    check(r#"{"want_diag":{"count":4}}"#, FromKeeper::WantDiag { count: 4 });
}

#[test]
fn the_keeper_s_messages_to_the_worker_are_what_they_were() {
    check(HELLO, ToWorker::Hello(hello()));
    check(NODE, ToWorker::Node(node()));
    check(r#""certificates""#, ToWorker::Certificates);
    check(&format!(r#"{{"pod":{{"id":7,"slot":3,"pod":{POD}}}}}"#), ToWorker::Pod { id: 7, slot: 3, pod: pod() });
    check(&format!(r#"{{"update":{{"id":7,"slot":3,"pod":{POD}}}}}"#), ToWorker::Update { id: 7, slot: 3, pod: pod() });
    check(r#"{"gone":{"id":7,"slot":3,"drain":false}}"#, ToWorker::Gone { id: 7, slot: 3, drain: false });
    check(r#"{"snapshot_end":{"id":7}}"#, ToWorker::SnapshotEnd { id: 7 });
    check(r#"{"minted":{"request":9,"short":null}}"#, ToWorker::Minted { request: 9, short: None });
    let short = Some(Reason::NoSocket.to_string());
    check(r#"{"minted":{"request":9,"short":"NoSocket"}}"#, ToWorker::Minted { request: 9, short });
}

#[test]
fn the_worker_s_records_are_what_they_were() {
    let zeros = "00".repeat(16);
    for (bytes, record) in [
        ("01010102 00000000 0000000000000000", FromWorker::Hello { oldest: 1, newest: 1, threads: 2 }),
        ("02000000 00000000 0807060504030201", FromWorker::Ack { id: 0x0102_0304_0506_0708 }),
        ("03000000 00000000 0800000000000000", FromWorker::Nack { id: 8, reason: Reason::NotReady }),
        ("03190000 00000000 0800000000000000", FromWorker::Nack { id: 8, reason: Reason::Conflict }),
        (
            "04040102 03000000 0900000000000000",
            FromWorker::Mint { request: 9, slot: 3, family: Family::V4, purpose: Purpose::TowardsApp, count: 2 },
        ),
        (
            "04060240 ffffffff ffffffff00000000",
            FromWorker::Mint {
                request: u32::MAX,
                slot: u32::MAX,
                family: Family::V6,
                purpose: Purpose::TowardsPeer,
                count: 64,
            },
        ),
        ("05000000 00000000 0000000000000000", FromWorker::Keep),
    ] {
        let hex = format!("{}{zeros}", bytes.replace(' ', ""));
        let written: String = record.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, hex, "{record:?} is written otherwise now");
        assert_eq!(FromWorker::from_bytes(&record.to_bytes()), Ok(record), "{bytes} means something else now");
    }
}

/// The number of a reason in a worker's record is its place in this list: new ones go to the end.
#[test]
fn the_reasons_keep_their_numbers() {
    let names = [
        "NotReady",
        "UnknownDestination",
        "NoEndpoint",
        "PolicyDenied",
        "PolicyUnknown",
        "PolicyChanged",
        "ConnectFailed",
        "ConnectTimeout",
        "CertificateUnavailable",
        "CertificateExpired",
        "PeerUntrusted",
        "HandshakeFailed",
        "HandshakeTimeout",
        "BadRequest",
        "WrongDestination",
        "ReservedPort",
        "TunnelRefused",
        "TunnelClosed",
        "Overloaded",
        "NoSocket",
        "NoOriginalDestination",
        "Reset",
        "IdleTimeout",
        "Draining",
        "Malformed",
        "Conflict",
        "Kernel",
        "LinkDown",
        "VersionMismatch",
        "Internal",
    ];
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert!(known.starts_with(&names), "a reason was moved, renamed or taken away: {known:?}");
}

#[test]
fn what_a_sender_may_leave_out_has_its_default_and_what_it_adds_is_passed_over() {
    let bare = br#"{"hello":{"component":"worker","oldest":1,"newest":2,"later":{"a":[1]}}}"#;
    let hello = Hello { component: "worker".to_owned(), oldest: 1, newest: 2, capabilities: vec![] };
    assert_eq!(hello.agree().ok(), Some(1));
    assert_eq!(decode::<ToWorker>("fixture", bare).ok(), Some(ToWorker::Hello(hello)));
    let bare = br#"{"add":{"container_id":"c1","ifname":"eth0","pod_namespace":"shop","pod_name":"cart"}}"#;
    let attachment = Attachment { pod_uid: String::new(), addresses: vec![], ..attachment() };
    assert_eq!(decode::<ToWatcher>("fixture", bare).ok(), Some(ToWatcher::Add(attachment)));
    assert!(decode::<ToWatcher>("fixture", br#"{"later":{}}"#).is_err());
    let alien = Hello { component: "keeper".to_owned(), oldest: 2, newest: 3, capabilities: vec![] };
    assert!(alien.agree().is_err());
}
