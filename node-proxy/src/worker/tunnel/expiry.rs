//! A tunnel takes no new connection once the certificate that its peer proved itself by has run out.
//!
//! Those that are open live on: they were allowed while it was valid. What matters is the machine's clock, which may be set meanwhile.

use std::time::{Duration, SystemTime};

/// How often the clock is looked at, at least.
const LOOK: Duration = Duration::from_secs(30);

/// Resolves when the time has passed. Safe to drop half-way.
pub(super) async fn passed(not_after: SystemTime) {
    // RFC 5280, 4.1.2.5: that very second is still within, and handshakes succeed in it.
    let end = not_after + Duration::from_secs(1);
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK) + Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_time_that_has_passed_has_passed_and_one_to_come_comes() {
        passed(SystemTime::now() - Duration::from_secs(2)).await;
        let soon = SystemTime::now() - Duration::from_millis(900);
        passed(soon).await;
        assert!(SystemTime::now() > soon + Duration::from_secs(1));
    }
}
