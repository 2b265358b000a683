//! What is told of the chain in Events of the node, where people look when pods of one node are not captured.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_kube::{EventType, Reporter};
use tokio::time::Instant;

/// The same kind of news about one node is told so often; the log has the rest.
const CALM: Duration = Duration::from_secs(60);

/// Something that happened to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happened {
    /// It had been changed, and was put right.
    Repaired,
    /// Somebody changes it again and again.
    Contested,
    /// We are not in it, and cannot be.
    Out,
    /// We are in it, after all.
    In,
}

impl Happened {
    /// An Event's reason.
    const fn reason(self) -> &'static str {
        match self {
            Self::Repaired => "ChainRepaired",
            Self::Contested => "ChainContested",
            Self::Out => "ChainRepairFailed",
            Self::In => "ChainJoined",
        }
    }

    const fn kind(self) -> EventType {
        match self {
            Self::In => EventType::Normal,
            Self::Repaired | Self::Contested | Self::Out => EventType::Warning,
        }
    }
}

/// Tells it, not too often.
pub(super) struct News {
    reporter: Option<Reporter>,
    last: BTreeMap<Happened, Instant>,
}

impl News {
    /// Without a reporter, the log is all there is.
    pub(super) fn new(reporter: Option<Reporter>) -> Self {
        Self { reporter, last: BTreeMap::new() }
    }

    pub(super) fn tell(&mut self, happened: Happened, message: &str) {
        if self.is_due(happened, Instant::now())
            && let Some(reporter) = &self.reporter
        {
            reporter.node_event(happened.kind(), happened.reason(), message);
        }
    }

    fn is_due(&mut self, happened: Happened, now: Instant) -> bool {
        let due = self.last.get(&happened).is_none_or(|last| now >= *last + CALM);
        if due {
            self.last.insert(happened, now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_news_is_told_once_a_minute_at_most() {
        let (mut news, start) = (News::new(None), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(news.is_due(Happened::Repaired, at(0)));
        assert!(!news.is_due(Happened::Repaired, at(59)));
        assert!(news.is_due(Happened::Out, at(59)), "another kind");
        assert!(news.is_due(Happened::Repaired, at(60)));
        assert!(!news.is_due(Happened::Repaired, at(61)));
    }
}
