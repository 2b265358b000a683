//! PING: a peer that is gone without a word is noticed, whatever the streams do.

use h2::{Ping, PingPong};

use super::settings::{PING_INTERVAL, PING_TIMEOUT};

/// The peer did not answer a PING in time.
#[derive(Debug)]
pub(super) struct Silent;

/// Resolves when the peer is dead. When the connection ends by itself this never resolves: the connection's own end is the news.
pub(super) async fn watch(ping: Option<PingPong>) -> Silent {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_TIMEOUT, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return Silent,
        }
    }
}
