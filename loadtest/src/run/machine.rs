//! What was measured on, and how: without it a figure says nothing.

use std::fs;

use crate::measure::{cores, load};

/// Name and text, in the order to print.
pub(super) fn describe() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model.trim()).to_owned();
    let kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let memory = kib.map_or("unknown".to_owned(), |kib: f64| format!("{:.1} GiB", kib / 1024.0 / 1024.0));
    let said = |name: &str, text: String| (name.to_owned(), text);
    vec![
        said("machine", format!("{} cores, {model}, {memory}", cores::count())),
        said("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        said("program", format!("culvert-loadtest {}{}", env!("CARGO_PKG_VERSION"), build())),
        said(
            "placement",
            "one-core: client, server and all proxies on CPU 0; two-cores: client and its node's proxy on CPU 0, server and \
             its node's proxy on CPU 1 (same-node: the one proxy on CPU 0)"
                .into(),
        ),
        said(
            "method",
            format!(
                "planes take turns in every round; median, smallest and largest of the rounds; a sample with other load over \
                 {:.0} % of a core is repeated twice at most",
                load::THRESHOLD * 100.0
            ),
        ),
        said("cpu", "proxy CPU: scheduler time of all threads of the proxies of both sides (/proc/PID/task/*/schedstat)".into()),
        said("latency", "hdrhistogram, 3 digits; paced scenarios count from the moment an operation was due".into()),
        said("sockets", "client pods of every plane: tcp_tw_reuse=1; server pods at the default".into()),
    ]
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { ", built with debug assertions: figures are not for comparison" } else { "" }
}
