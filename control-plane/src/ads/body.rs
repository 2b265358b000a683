//! Answers as the body of a gRPC response (`doc/PROTOCOL-HTTP2.md` of gRPC): each behind a prefix of five bytes, and the status in the
//! trailers. A piece is made when HTTP/2 has room for it, so what waits for a slow client is a list of what it is to be told.

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use mesh_api::xds::Answer;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};

/// The response whose body are these answers, until there are no more or one is an error.
pub fn response(answers: mpsc::Receiver<Result<Answer, Status>>) -> Response<Body> {
    let mut response = Response::new(Body::new(StreamBody::new(frames(answers))));
    response.headers_mut().insert("content-type", tonic::metadata::GRPC_CONTENT_TYPE);
    response
}

type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

fn frames(answers: mpsc::Receiver<Result<Answer, Status>>) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    let begin: (_, Pieces) = (Some(answers), Box::new(std::iter::empty()));
    stream::unfold(begin, |(answers, mut pieces)| async {
        // None: the trailers were sent.
        let mut answers = answers?;
        loop {
            if let Some(piece) = pieces.next() {
                return Some((Ok(Frame::data(piece)), (Some(answers), pieces)));
            }
            // What has been written is let go of before the next is waited for.
            pieces = Box::new(std::iter::empty());
            let status = match answers.recv().await {
                Some(Ok(answer)) => match prefix(&answer) {
                    Ok(prefix) => {
                        pieces = Box::new(std::iter::once(prefix).chain(answer.pieces()));
                        continue;
                    }
                    Err(status) => status,
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            return Some((trailers(&status).map(Frame::trailers), (None, pieces)));
        }
    })
}

/// Not compressed, and so long.
fn prefix(answer: &Answer) -> Result<Bytes, Status> {
    let len = u32::try_from(answer.encoded_len()).map_err(|_| Status::out_of_range("an answer of more than 4 GiB"))?;
    Ok([&[0][..], &len.to_be_bytes()].concat().into())
}

fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}
