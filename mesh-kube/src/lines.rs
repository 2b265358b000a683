//! A watch's answer, cut into lines of bounded length.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use kube::client::Body;

use crate::api::quiet;

/// The longest line. An object is at most 1.5 MiB in etcd; its JSON and the event around it are not twice that.
const LONGEST: usize = 4 * 1024 * 1024;

/// Lines that arrive.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
}

/// Why there are no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The connection.
    #[error("{0}")]
    Cut(String),
    /// Nobody sends that on purpose.
    #[error("a line is longer than {LONGEST} bytes")]
    TooLong,
}

impl Lines {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line; `None` after the last. What came after the last line end is no line. May be dropped half-way: what was received
    /// is kept.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST {
                return Err(Broken::TooLong);
            }
            match quiet(self.body.frame()).await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Broken::Cut(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: Vec<u8>) -> (Vec<String>, bool) {
        let mut lines = Lines::new(Body::from(text));
        let mut found = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => found.push(String::from_utf8_lossy(&line).into_owned()),
                Ok(None) => return (found, true),
                Err(_) => return (found, false),
            }
        }
    }

    #[tokio::test]
    async fn half_a_line_is_none_and_blank_ones_are_passed_over() {
        assert_eq!(lines(b"one\n\n \ntwo\nhal".to_vec()).await, (vec!["one".to_owned(), "two".to_owned()], true));
        assert_eq!(lines(Vec::new()).await, (Vec::new(), true));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept_for_ever() {
        let mut text = b"one\n".to_vec();
        text.resize(LONGEST + 100, b'x');
        assert_eq!(lines(text).await, (vec!["one".to_owned()], false));
    }
}
