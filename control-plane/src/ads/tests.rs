//! A stream alone, with a clock that is moved.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::*;
use crate::tokens::file;

/// Asks for everything of this type, or again for nothing else: a prefix of five bytes, then `type_url`, the field 2.
fn asking(type_url: &str) -> Frame<Bytes> {
    let length = u8::try_from(type_url.len()).expect("a short name");
    Frame::data([&[0, 0, 0, 0, length + 2, 0x12, length], type_url.as_bytes()].concat().into())
}

#[tokio::test(start_paused = true)]
async fn who_sends_one_request_after_the_other_and_acknowledges_nothing_is_cut_off_in_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tokens.json");
    std::fs::write(&path, r#"{"token-1": "node-1"}"#).expect("written");
    let metrics = Metrics::new();
    let (mut writer, known) = file::tokens(&path, metrics.clone());
    writer.read();
    let tokens = Tokens::of_file(known, "Kubernetes");
    let caller = tokens.authenticate("token-1".into()).await.expect("a caller");
    let mut snapshot = Snapshot::default();
    snapshot.generation = 1;
    let (_source, snapshots) = watch::channel(Arc::new(snapshot));
    let (_stop, drain) = drain::pair();
    let (answers, mut buffer) = mpsc::channel(BUFFER);
    let handed = Instant::now();
    let mut serving =
        Serving { session: Session::default(), caller, snapshots, tokens, drain, metrics, answers, handed };
    // From the moment in which time is up there is always another request.
    let time_is_up = async {
        tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
        asking(ADDRESS_TYPE)
    };
    let requests = stream::iter([asking(ADDRESS_TYPE), asking(AUTHORIZATION_TYPE)])
        .chain(stream::once(time_is_up))
        .chain(stream::iter(std::iter::repeat_with(|| asking(ADDRESS_TYPE)).take(1_000)));
    let body = StreamBody::new(requests.map(Ok::<_, Status>).boxed());
    match serving.serve(xds::requests(body, LARGEST_REQUEST)).await {
        End::Ours(reason, _) => assert_eq!(reason, Reason::IdleTimeout),
        End::Client(cause) => panic!("served to its end: {cause}"),
    }
    assert!(buffer.try_recv().is_ok(), "it had an answer");
}
