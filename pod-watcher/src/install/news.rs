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
}

/// Tells it, not too often.
pub(super) struct News {
    reporter: Option<Reporter>,
    happened: BTreeMap<Happened, Instant>,
    /// Whether we are in the chain, as it was told last, and when.
    state: Option<(bool, Instant)>,
}

impl News {
    /// Without a reporter, the log is all there is.
    pub(super) fn new(reporter: Option<Reporter>) -> Self {
        Self { reporter, happened: BTreeMap::new(), state: None }
    }

    /// Something happened: news that come too soon after the same are dropped.
    pub(super) fn tell(&mut self, happened: Happened, message: &str) {
        let reason = match happened {
            Happened::Repaired => "ChainRepaired",
            Happened::Contested => "ChainContested",
        };
        if self.is_news(happened, Instant::now()) {
            self.event(EventType::Warning, reason, message);
        }
    }

    /// Whether we are in the chain now, said at every look: what is told last is true in the end.
    pub(super) fn state(&mut self, is_in: bool, message: impl FnOnce() -> String) {
        if self.is_another(is_in, Instant::now()) {
            let (kind, reason) = match is_in {
                true => (EventType::Normal, "ChainJoined"),
                false => (EventType::Warning, "ChainRepairFailed"),
            };
            self.event(kind, reason, &message());
        }
    }

    fn event(&self, kind: EventType, reason: &str, message: &str) {
        if let Some(reporter) = &self.reporter {
            reporter.node_event(kind, reason, message);
        }
    }

    fn is_news(&mut self, happened: Happened, now: Instant) -> bool {
        let due = self.happened.get(&happened).is_none_or(|last| now >= *last + CALM);
        if due {
            self.happened.insert(happened, now);
        }
        due
    }

    fn is_another(&mut self, is_in: bool, now: Instant) -> bool {
        let due = self.state.is_none_or(|(told, at)| told != is_in && now >= at + CALM);
        if due {
            self.state = Some((is_in, now));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_once_a_minute_at_most() {
        let (mut news, start) = (News::new(None), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(news.is_news(Happened::Repaired, at(0)));
        assert!(!news.is_news(Happened::Repaired, at(59)));
        assert!(news.is_news(Happened::Contested, at(59)), "another kind");
        assert!(news.is_news(Happened::Repaired, at(60)));
        assert!(!news.is_news(Happened::Repaired, at(61)));
    }

    #[test]
    fn the_state_is_told_when_it_is_another_and_never_left_untold() {
        let (mut news, start) = (News::new(None), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(news.is_another(true, at(0)));
        assert!(!news.is_another(true, at(100)), "the same");
        assert!(news.is_another(false, at(110)));
        assert!(!news.is_another(true, at(120)), "too soon");
        assert!(!news.is_another(true, at(169)));
        assert!(news.is_another(true, at(170)), "told in the end");
        assert!(!news.is_another(false, at(180)));
        assert!(!news.is_another(true, at(300)), "over before it was told");
    }
}
