//! The counter of last good configurations on the links, byte for byte, as its first release sends it. A process of the release before
//! knows none of this: what it cannot read is never sent to it.

use mesh_api::link::proxy::{FromKeeper, ToKeeper};
use mesh_api::link::worker::{BadRecord, COUNTER, FromWorker, ToWorker};
use mesh_api::link::{Hello, decode, encode};

#[test]
fn the_record_and_the_messages_are_what_they_were() {
    let bytes = [&[6, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1][..], &[0; 16]].concat();
    let record = FromWorker::Counter { counter: 0x0102_0304_0506_0708 };
    assert_eq!(record.to_bytes().to_vec(), bytes);
    assert_eq!(FromWorker::from_bytes(&bytes), Ok(record));
    let text = r#"{"counter":{"highest":18446744073709551615}}"#;
    let highest = u64::MAX;
    assert_eq!(encode(&ToWorker::Counter { highest }), text.as_bytes());
    assert_eq!(encode(&ToKeeper::Counter { highest }), text.as_bytes());
    assert_eq!(encode(&FromKeeper::Counter { highest }), text.as_bytes());
    assert_eq!(decode::<ToWorker>("fixture", text.as_bytes()).ok(), Some(ToWorker::Counter { highest }));
    assert_eq!(decode::<ToKeeper>("fixture", text.as_bytes()).ok(), Some(ToKeeper::Counter { highest }));
    assert_eq!(decode::<FromKeeper>("fixture", text.as_bytes()).ok(), Some(FromKeeper::Counter { highest }));
}

#[test]
fn a_counter_with_any_other_byte_set_is_no_record() {
    let good = FromWorker::Counter { counter: 1 }.to_bytes();
    for at in (1..8).chain(16..32) {
        let mut bytes = good;
        bytes[at] = 1;
        assert_eq!(FromWorker::from_bytes(&bytes), Err(BadRecord), "byte {at}");
    }
}

#[test]
fn a_keeper_without_the_ability_is_known_by_its_greeting() {
    let old: Hello =
        serde_json::from_str(r#"{"component":"keeper","oldest":1,"newest":1,"capabilities":[]}"#).expect("frozen");
    assert!(!old.can(COUNTER) && Hello::of("keeper").with(COUNTER).can("last-good-counter"));
}
