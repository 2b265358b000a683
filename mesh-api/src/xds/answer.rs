//! A delta answer whose resources are shared with whoever else is told of them, written a piece at a time.
//!
//! An answer may be the whole mesh: some megabytes. Made into one message, and that into one buffer, it is held by each stream twice
//! while it is on its way, and the buffer for as long as the stream is open. Protocol buffers need neither: the fields of a message may
//! come one after the other as long as the length in front is right.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{self, WireType};

use super::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::saved::SavedResource;

/// `DeltaDiscoveryResponse.resources`.
const RESOURCES: u32 = 2;
/// `Resource.version`, `.resource`, `.name`; `Any.type_url`, `.value`.
const VERSION: u32 = 1;
const RESOURCE: u32 = 2;
const NAME: u32 = 3;
const TYPE_URL: u32 = 1;
const VALUE: u32 = 2;

/// The most that a piece holds, but for one resource that is larger: a TLS record (RFC 8446, 5.1).
const PIECE: usize = 16 * 1024;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Everything but the resources.
    pub head: DeltaDiscoveryResponse,
    /// The resources.
    pub resources: Vec<Arc<SavedResource>>,
}

impl Answer {
    /// The length of the message in bytes.
    pub fn encoded_len(&self) -> usize {
        let field = |resource: &Arc<SavedResource>| {
            let len = resource_len(resource);
            encoding::key_len(RESOURCES) + encoding::encoded_len_varint(len as u64) + len
        };
        self.head.encoded_len() + self.resources.iter().map(field).sum::<usize>()
    }

    /// The message, in pieces that are made when they are asked for.
    pub fn pieces(self) -> impl Iterator<Item = Bytes> + Send {
        let Self { head, resources } = self;
        let mut resources = resources.into_iter().peekable();
        let mut head = Some(head);
        std::iter::from_fn(move || {
            let mut piece = BytesMut::new();
            if let Some(head) = head.take() {
                piece.extend(head.encode_to_vec());
            }
            while let Some(resource) =
                resources.next_if(|next| piece.is_empty() || piece.len() + next.body.len() < PIECE)
            {
                encode(&resource, &mut piece);
            }
            (!piece.is_empty()).then(|| piece.freeze())
        })
    }
}

fn any_len(resource: &SavedResource) -> usize {
    encoding::string::encoded_len(TYPE_URL, &resource.type_url) + encoding::bytes::encoded_len(VALUE, &resource.body)
}

fn resource_len(resource: &SavedResource) -> usize {
    let any = any_len(resource);
    encoding::string::encoded_len(VERSION, &resource.version)
        + encoding::key_len(RESOURCE)
        + encoding::encoded_len_varint(any as u64)
        + any
        + encoding::string::encoded_len(NAME, &resource.name)
}

fn encode(resource: &SavedResource, buf: &mut BytesMut) {
    let message = |tag, len: usize, buf: &mut BytesMut| {
        encoding::encode_key(tag, WireType::LengthDelimited, buf);
        encoding::encode_varint(len as u64, buf);
    };
    message(RESOURCES, resource_len(resource), buf);
    encoding::string::encode(VERSION, &resource.version, buf);
    message(RESOURCE, any_len(resource), buf);
    encoding::string::encode(TYPE_URL, &resource.type_url, buf);
    encoding::bytes::encode(VALUE, &resource.body, buf);
    encoding::string::encode(NAME, &resource.name, buf);
}

/// The requests of a delta stream that a body carries, none larger than this.
pub fn requests<B>(body: B, largest: usize) -> tonic::Streaming<DeltaDiscoveryRequest>
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    use tonic::codec::Codec as _;
    let decoder = tonic_prost::ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
    tonic::Streaming::new_request(decoder, body, None, Some(largest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xds::discovery;

    fn resource() -> impl Strategy<Value = SavedResource> {
        ("[a-z]{0,20}", "[a-z/]{0,300}", "[0-9a-f]{0,20}", prop::collection::vec(any::<u8>(), 0..9000))
            .prop_map(|(type_url, name, version, body)| SavedResource { type_url, name, version, body })
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_message_and_none_is_much_larger_than_it_should_be(
            resources in prop::collection::vec(resource(), 0..12),
            gone in prop::collection::vec("[a-z]{1,9}", 0..4),
        ) {
            let head = DeltaDiscoveryResponse { nonce: "1-2".into(), removed_resources: gone, ..Default::default() };
            let whole = DeltaDiscoveryResponse {
                resources: resources.iter().cloned().map(discovery::Resource::from).collect(),
                ..head.clone()
            };
            let answer = Answer { head, resources: resources.into_iter().map(Arc::new).collect() };
            let len = answer.encoded_len();
            let pieces: Vec<Bytes> = answer.pieces().collect();
            prop_assert!(pieces.iter().all(|piece| piece.len() < PIECE + 1024));
            let bytes = pieces.concat();
            prop_assert_eq!(bytes.len(), len);
            prop_assert_eq!(DeltaDiscoveryResponse::decode(&bytes[..]), Ok(whole));
        }
    }
}
