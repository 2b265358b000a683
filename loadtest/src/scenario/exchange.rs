//! Exchanges on open connections, of 64 B and of 1 KiB: on one connection and on 64, as fast as they go; and at a fixed rate.

use std::time::Duration;

use super::{Figure, Paths, Planes, Scenario, Sized, traffic};
use crate::plane::ECHO;
use crate::traffic::Work;

/// Below what one core carries through two proxies on any path here, so that times are those of the path and not of a queue.
const RATE: f64 = 2000.0;
/// Connections that share the fixed rate.
const SHARE: usize = 16;

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (size, named) in [(64, "64B"), (1024, "1KiB")] {
        for connections in [1, 64] {
            let about = format!("{named} each way on {connections} open connection(s), as fast as answers come");
            let name = format!("exchange-{named}-{connections}");
            all.push(scenario(name, about, Paths::All, size, connections, None));
        }
    }
    // The larger one on the main paths alone: all eight are another half minute.
    for (size, named, shown, paths) in [(64, "64B", "64 B", Paths::All), (1024, "1KiB", "1 KiB", Paths::Main)] {
        let about =
            format!("{shown} each way, {RATE} per second over {SHARE} connections, each timed from when it was due");
        all.push(scenario(format!("exchange-{named}-paced"), about, paths, size, SHARE, Some(RATE)));
    }
    all
}

fn scenario(name: String, about: String, paths: Paths, size: usize, connections: usize, rate: Option<f64>) -> Scenario {
    let lasts = Sized { whole: Duration::from_millis(500), quick: Duration::from_millis(300) };
    Scenario {
        name,
        about,
        paths,
        planes: Planes::All,
        rounds: Sized { whole: 5, quick: 3 },
        takes: Sized { whole: Duration::from_millis(650), quick: Duration::from_millis(450) },
        sample: Box::new(move |cx| {
            let work = Work::Exchange { size, connections, lasts: lasts.of(cx.quick), rate };
            let measured = traffic::run(cx, ECHO, work)?;
            let mut figures = measured.operations();
            if let (Some(_), Some(latency)) = (rate, &measured.report.latency) {
                figures.push(Figure::new("p99.9", "us", latency.p999));
            }
            Ok(figures)
        }),
    }
}
