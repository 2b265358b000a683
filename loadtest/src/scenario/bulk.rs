//! As many bytes as go: one stream and eight, up (client to server) and down.

use std::time::Duration;

use super::{Figure, Paths, Planes, Scenario, Sized, traffic};
use crate::plane::{SINK, SOURCE};
use crate::traffic::Work;

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for streams in [1, 8] {
        for down in [false, true] {
            all.push(scenario(streams, down));
        }
    }
    all
}

fn scenario(streams: usize, down: bool) -> Scenario {
    let (word, port) = if down { ("down", SOURCE) } else { ("up", SINK) };
    let lasts = Sized { whole: Duration::from_millis(700), quick: Duration::from_millis(400) };
    Scenario {
        name: format!("bulk-{word}-{streams}"),
        about: format!("{streams} stream(s) as fast as they go, {word}"),
        paths: Paths::All,
        planes: Planes::All,
        rounds: Sized { whole: 5, quick: 3 },
        takes: Sized { whole: Duration::from_millis(850), quick: Duration::from_millis(550) },
        sample: Box::new(move |cx| {
            let work = Work::Bulk { streams, down, lasts: lasts.of(cx.quick) };
            let measured = traffic::run(cx, port, work)?;
            let (bytes, seconds) = (measured.report.bytes as f64, measured.report.seconds);
            let mut figures = vec![Figure::new("throughput", "Gbit/s", bytes * 8.0 / 1e9 / seconds)];
            if let Some(proxies) = measured.proxies {
                figures.push(Figure::new("proxy_cpu", "s/GB", proxies.as_secs_f64() / (bytes / 1e9)));
            }
            Ok(figures)
        }),
    }
}
