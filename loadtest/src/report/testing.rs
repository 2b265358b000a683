//! A fixed outcome that the report's tests share.

use crate::result::{Outcome, Row};

/// A row of three runs.
pub fn row(scenario: &str, path: &str, plane: &str, metric: &str, unit: &str, values: [f64; 3]) -> Row {
    Row::of(scenario, path, plane, metric, unit, &values).expect("three numbers")
}

/// Two scenarios, two paths, three planes.
pub fn outcome() -> Outcome {
    let same = "same-node-v4-one-core";
    let cross = "cross-node-v4-one-core";
    let exchange = "exchange-1KiB-1";
    Outcome {
        machine: vec![("cpu".into(), "2 cores of a <test> machine".into()), ("kernel".into(), "6.1 & later".into())],
        command: "cargo xtask bench --quick".into(),
        rows: vec![
            row(exchange, same, "none", "p50", "us", [48.0, 50.0, 55.0]),
            row(exchange, same, "mesh", "p50", "us", [97.0, 100.0, 108.0]),
            row(exchange, same, "envoy", "p50", "us", [190.0, 200.0, 230.0]),
            row(exchange, same, "none", "proxy_cpu", "us/op", [0.0; 3]),
            row(exchange, same, "mesh", "proxy_cpu", "us/op", [39.0, 40.0, 41.0]),
            row(exchange, same, "envoy", "proxy_cpu", "us/op", [88.0, 90.0, 99.0]),
            row(exchange, cross, "none", "p50", "us", [48.0, 50.0, 55.0]),
            row(exchange, cross, "mesh", "p50", "us", [195.0, 200.0, 208.0]),
            row("connect-1", same, "none", "rate", "1/s", [9_000.0, 10_000.0, 10_400.0]),
            row("connect-1", same, "mesh", "rate", "1/s", [3_300.0, 3_500.0, 3_600.0]),
            row("certificates-110", "node", "mesh", "ready", "ms", [310.0, 320.0, 350.0]),
        ],
        notes: vec!["one sample was dropped: the machine was busy".into()],
        seconds: 61.5,
    }
}
