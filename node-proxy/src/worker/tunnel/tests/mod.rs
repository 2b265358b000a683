//! Promises of the tunnel, over loopback with real TLS.

mod exchange;
mod life;
mod refusals;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_daemon::drain;
use mesh_model::Reason;
use mesh_model::policy::PolicyKey;
use mesh_tls::authority::Authority;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::server::{Incoming, serve_io};
use super::settings::*;
use super::stream::{Stream, reason_of};
use super::testing::*;
use super::{DialError, OpenError, Pool, client};

const TEN_MB: usize = 10 << 20;

/// Pseudo-random bytes (xorshift), so that a mixed-up order shows.
fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    stream.read_to_end(&mut out).await?;
    Ok(out)
}

async fn echo(request: Incoming) {
    let Ok(stream) = request.accept(None) else { return };
    let (mut read, mut write) = tokio::io::split(stream);
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// One byte there and back.
async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    timeout(WAIT, async {
        stream.write_all(b"x").await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'x');
    })
    .await
    .expect("echo in time");
}
