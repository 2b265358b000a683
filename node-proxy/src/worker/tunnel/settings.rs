//! The numbers of the tunnel, with where they come from.

use std::time::Duration;

/// Bytes one stream may have on the way to a reader that does not read. ztunnel's value; 64 KiB costs 75 % more CPU per byte.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
/// The connection's window at the start (ztunnel's fixed value). It grows with the number of streams, see [`window_for`].
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Where growth ends: 31 readers of one tunnel may stand still at the same time before they hold up the others. Guessed.
pub(super) const CONNECTION_WINDOW_MAX: u32 = 128 << 20;
/// Largest DATA frame (ztunnel's value).
pub(super) const FRAME: u32 = 1 << 20;
/// Streams a peer may have open towards us on one connection (ztunnel's value).
pub(super) const STREAMS_ADVERTISED: u32 = 200;
/// Streams we put on one connection before another is opened (ztunnel's value); less where the peer allows less.
pub(super) const STREAMS_USED: usize = 100;
/// Header list that we accept as a server and as a client (ztunnel's values).
pub(super) const HEADERS_SERVER: u32 = 64 << 10;
/// See [`HEADERS_SERVER`].
pub(super) const HEADERS_CLIENT: u32 = 16 << 10;
/// Bytes one stream may have waiting to be sent. ztunnel: 400 KiB as a server, 4 MiB as a client; with the frame size above,
/// half a frame in flight keeps the pipe full (guessed, to be measured).
pub(super) const SEND_BUFFER: usize = 512 << 10;
/// Most bytes taken over by one write: with the nine of the frame's header (RFC 9113, 4.1) four full TLS records, which rustls hands to the
/// kernel at once. With 64 KiB the last nine bytes were a record and a segment of their own.
pub(super) const WRITE_CHUNK: usize = (64 << 10) - 9;
/// Read bytes are given back to the peer's window in portions of this size: each return takes h2's lock.
pub(super) const RETURN_CHUNK: usize = 32 << 10;
/// What h2 may spend on the bookkeeping of small DATA frames that nobody reads yet, in its own unit (256 per frame). h2's default
/// of half the window would end the whole tunnel after 32,000 small frames to one reader that stands still.
pub(super) const SMALL_FRAME_BUDGET: usize = 32 << 20;
/// Streams that we have reset and still know, so that what the peer had already sent on them is passed over (h2's default: 50). What
/// comes for a forgotten one counts as a fault, and after 1,024 faults h2 ends the tunnel with every connection on it: a service that
/// refuses uploads by 413 did that within seconds.
pub(super) const RESETS_KNOWN: usize = 1_000;
/// For how long: a round trip and what lies queued on the way (h2's default: 1 s).
pub(super) const RESETS_KNOWN_FOR: Duration = Duration::from_secs(2);
/// Such faults in a tunnel's whole life. h2 counts them against peers that have streams reset to outrun the limit of open ones; here a
/// stream is counted until its handler has ended, see [`RAPID_RESETS`], so this only has to be some number.
pub(super) const RESET_FAULTS: usize = 1 << 16;
/// A PING goes out this long after the last answer (ztunnel's value).
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A peer that does not answer a PING in this time is dead (ztunnel's value).
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// TCP keepalive, time and interval, with nine tries (ztunnel's value).
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(180);
/// Time for TLS and the HTTP/2 preface.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Time for the answer to a CONNECT beyond what the far side gives its application to answer in (`--connect-timeout-seconds`, the same
/// in all of a mesh).
pub(super) const ANSWER_BEYOND: Duration = Duration::from_secs(5);
/// A tunnel without streams is closed after this time (ztunnel's value).
pub(super) const IDLE_RELEASE: Duration = Duration::from_secs(5 * 60);
/// A peer's connection without streams is closed after this time: three times what our own pool waits.
pub(super) const IDLE_SERVER: Duration = Duration::from_secs(15 * 60);
/// How often idleness is looked at.
pub(super) const IDLE_CHECK: Duration = Duration::from_secs(30);
/// How often a CONNECT is put on another tunnel because the first went away without having looked at it.
pub(super) const ATTEMPTS: usize = 4;
/// Requests that the peer may take back at once ([`RAPID`]), beyond as many as were answered (CVE-2023-44487). With one more it is asked to
/// go elsewhere; what it has open lives on.
pub(super) const RAPID_RESETS: usize = 256;
/// Taken back within this time of its arrival, a request cost more to look at than to send: that is a flood. One that is taken back later
/// had a caller who lost patience, and holds a place until then: 200 places make 2,000 such a second, less than a tunnel serves anyway.
pub(super) const RAPID: Duration = Duration::from_millis(100);
/// Requests that may have been taken back before they were looked at. With h2's default of 20, 21 callers who hang up in one moment end the
/// tunnel with every connection on it. Each is a header block and no more; those within [`RAPID`] are counted when they are looked at.
pub(super) const RESETS_UNSEEN: usize = 1_000;
/// After the connection ended, handlers get this long to notice (they hear of it at once, whatever they wait for).
pub(super) const HANDLERS_DEADLINE: Duration = Duration::from_secs(12);

/// The connection window for a number of open streams: every stream can have its window full and there is one more to spare, so
/// one reader that stands still never takes the window of another, up to the maximum.
pub(super) fn window_for(streams: usize) -> u32 {
    let wanted = (streams as u64 + 1).saturating_mul(u64::from(STREAM_WINDOW)).next_power_of_two();
    u32::try_from(wanted).unwrap_or(u32::MAX).clamp(CONNECTION_WINDOW, CONNECTION_WINDOW_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_window_exceeds_all_stream_windows_until_its_maximum() {
        for streams in 0..=31 {
            assert!(u64::from(window_for(streams)) >= (streams as u64 + 1) * u64::from(STREAM_WINDOW), "{streams}");
        }
        assert_eq!(window_for(0), CONNECTION_WINDOW);
        assert_eq!(window_for(3), CONNECTION_WINDOW);
        assert_eq!(window_for(usize::MAX / (8 << 20)), CONNECTION_WINDOW_MAX);
    }
}
