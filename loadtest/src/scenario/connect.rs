//! Short connections: connect, 1 KiB there and back, close; one at a time and 16.

use std::time::Duration;

use super::{Paths, Planes, Scenario, Sized, traffic};
use crate::plane::ECHO;
use crate::traffic::Work;

/// Bytes each way, as the peer was measured with.
const SIZE: usize = 1024;

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    [1, 16].map(scenario).into()
}

fn scenario(at_once: usize) -> Scenario {
    let lasts = Sized { whole: Duration::from_millis(500), quick: Duration::from_millis(300) };
    Scenario {
        name: format!("connect-{at_once}"),
        about: format!("connect, 1 KiB there and back, close; {at_once} at a time"),
        paths: Paths::All,
        planes: Planes::All,
        rounds: Sized { whole: 5, quick: 3 },
        takes: Sized { whole: Duration::from_millis(650), quick: Duration::from_millis(450) },
        sample: Box::new(move |cx| {
            let lasts = lasts.of(cx.quick);
            let work = Work::Connect { size: SIZE, at_once, lasts, rate: None, limit: None, block: None };
            Ok(traffic::run(cx, ECHO, work)?.operations())
        }),
    }
}
