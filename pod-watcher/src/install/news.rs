//! What is told of the chain in Events of the node, where people look when pods of one node are not captured.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_kube::{EventType, Reporter};
use tokio::time::Instant;

/// The same kind of news about one node is told so often; the log has the rest.
const CALM: Duration = Duration::from_secs(60);
/// After this time API servers forget events: what is still not as it should be is told again.
const FORGOTTEN: Duration = Duration::from_secs(3600);

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
    /// As it was told last.
    state: Option<State>,
}

/// Whether we are in the chain, in which or why not, and since when it was told.
struct State {
    is_in: bool,
    message: String,
    at: Instant,
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
        if self.is_news(happened, Instant::now())
            && let Some(reporter) = &self.reporter
        {
            reporter.node_event(EventType::Warning, reason, message);
        }
    }

    /// Whether we are in the chain now, and in which or why not, said at every look: what is told last is true in the end.
    pub(super) fn state(&mut self, is_in: bool, message: &str) {
        if !self.is_another(is_in, message, Instant::now()) {
            return;
        }
        let (kind, reason) = match is_in {
            true => (EventType::Normal, "ChainJoined"),
            false => (EventType::Warning, "ChainRepairFailed"),
        };
        if let Some(reporter) = &self.reporter {
            reporter.node_state(kind, reason, message);
        }
    }

    fn is_news(&mut self, happened: Happened, now: Instant) -> bool {
        let due = self.happened.get(&happened).is_none_or(|last| now >= *last + CALM);
        if due {
            self.happened.insert(happened, now);
        }
        due
    }

    fn is_another(&mut self, is_in: bool, message: &str, now: Instant) -> bool {
        let due = self.state.as_ref().is_none_or(|told| {
            let differs = told.is_in != is_in || told.message != message;
            differs && now >= told.at + CALM || !is_in && now >= told.at + FORGOTTEN
        });
        if due {
            self.state = Some(State { is_in, message: message.to_owned(), at: now });
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
        let mut told = |is_in, seconds| news.is_another(is_in, "", start + Duration::from_secs(seconds));
        assert!(told(true, 0));
        assert!(!told(true, 100), "the same");
        assert!(told(false, 110));
        assert!(!told(true, 120), "too soon");
        assert!(!told(true, 169));
        assert!(told(true, 170), "told in the end");
        assert!(!told(false, 180));
        assert!(!told(true, 300), "over before it was told");
    }

    #[test]
    fn another_cause_is_told_and_one_that_stays_is_told_again_once_events_are_forgotten() {
        let (mut news, start) = (News::new(None), Instant::now());
        let mut told = |is_in, message, seconds| news.is_another(is_in, message, start + Duration::from_secs(seconds));
        assert!(told(false, "no network is configured yet", 0));
        assert!(!told(false, "read-only file system", 59), "too soon");
        assert!(told(false, "read-only file system", 60));
        assert!(!told(false, "read-only file system", 60 + 3599));
        assert!(told(false, "read-only file system", 60 + 3600));
        assert!(!told(false, "read-only file system", 60 + 3700));
        assert!(told(true, "in 10-bridge.conflist", 4000));
        assert!(!told(true, "in 10-bridge.conflist", 9000), "all is well, and nothing has changed");
        assert!(told(true, "in 05-other.conflist", 9001));
    }
}
