//! Holds only the test binary `promises`; see `promises.rs`.
