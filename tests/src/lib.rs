//! Holds only the test binaries `promises` and `cluster`; see `promises.rs` and `cluster/main.rs`.
