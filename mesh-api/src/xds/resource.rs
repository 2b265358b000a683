//! One xDS resource: bytes with a type, a name and a version, to and from the model.

use mesh_model::policy::{Policy, Scope};
use mesh_model::{Service, Workload};
use prost::Message;

use super::saved::{SavedResource, crc64};
use super::{ADDRESS_TYPE, AUTHORIZATION_TYPE, BadAddress, BadPolicy, Record, discovery, security, workload as wire};

/// What a resource says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
    /// A policy.
    Policy(Policy),
}

/// A resource cannot be used. It is refused by name; the others of the same answer stand.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadResource {
    /// A type nobody asked for.
    #[error("resource {name:?} has the unknown type {type_url:?}")]
    Type {
        /// The resource.
        name: String,
        /// Its type.
        type_url: String,
    },
    /// Without a body.
    #[error("resource {name:?} has no body")]
    Empty {
        /// The resource.
        name: String,
    },
    /// Not the protobuf message that its type says.
    #[error("resource {name:?} cannot be decoded")]
    Bytes {
        /// The resource.
        name: String,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// The resource's name is not the key of what it holds.
    #[error("resource {name:?} holds {holds:?}")]
    Name {
        /// The resource.
        name: String,
        /// The key inside.
        holds: String,
    },
    /// A policy with fields that this build does not know: without them it might allow more.
    #[error("policy {name:?} has fields that this build does not know")]
    UnknownFields {
        /// The resource.
        name: String,
    },
    /// A workload or service that cannot be used.
    #[error("resource {name:?} cannot be used")]
    Address {
        /// The resource.
        name: String,
        /// Why.
        #[source]
        source: BadAddress,
    },
    /// A policy that cannot be understood.
    #[error("resource {name:?} cannot be understood")]
    Policy {
        /// The resource.
        name: String,
        /// Why.
        #[source]
        source: BadPolicy,
    },
}

/// What a resource says. A policy that fails here has to be replaced by [`super::refusing_policy`]; an address that fails here has
/// to be taken out of the mesh, since its earlier form may list fewer policies.
pub fn decode(type_url: &str, name: &str, body: &[u8]) -> Result<Resource, BadResource> {
    let bytes = |source| BadResource::Bytes { name: name.to_owned(), source };
    let resource = match type_url {
        ADDRESS_TYPE => {
            let message = wire::Address::decode(body).map_err(bytes)?;
            match Record::try_from(message).map_err(|source| BadResource::Address { name: name.to_owned(), source })? {
                Record::Workload(workload) => Resource::Workload(workload),
                Record::Service(service) => Resource::Service(service),
            }
        }
        AUTHORIZATION_TYPE => {
            let message = security::Authorization::decode(body).map_err(bytes)?;
            // Unknown fields are dropped in decoding and show as bytes that encoding does not bring back. Encoders in use write the
            // shortest form, so an honest message has exactly this length.
            if message.encoded_len() != body.len() {
                return Err(BadResource::UnknownFields { name: name.to_owned() });
            }
            let policy = Policy::try_from(message);
            Resource::Policy(policy.map_err(|source| BadResource::Policy { name: name.to_owned(), source })?)
        }
        _ => return Err(BadResource::Type { name: name.to_owned(), type_url: super::field::clip(type_url) }),
    };
    let holds = resource.name();
    if holds == name { Ok(resource) } else { Err(BadResource::Name { name: name.to_owned(), holds }) }
}

impl Resource {
    /// The name under which it travels.
    pub fn name(&self) -> String {
        match self {
            Resource::Workload(workload) => workload.uid.to_string(),
            Resource::Service(service) => service.key.to_string(),
            Resource::Policy(policy) => policy.key.to_string(),
        }
    }
}

/// A workload in wire form; its version comes from its content.
pub fn workload_resource(workload: &Workload) -> SavedResource {
    encoded(ADDRESS_TYPE, workload.uid.to_string(), &wire::Address::from(workload))
}

/// A service in wire form; its version comes from its content.
pub fn service_resource(service: &Service) -> SavedResource {
    encoded(ADDRESS_TYPE, service.key.to_string(), &wire::Address::from(service))
}

/// A policy in wire form; its version comes from its content.
pub fn policy_resource(policy: &Policy) -> SavedResource {
    let mut resource = encoded(AUTHORIZATION_TYPE, policy.key.to_string(), &security::Authorization::from(policy));
    if policy.scope == Scope::Selector {
        resource.version.insert(0, LISTED);
    }
    resource
}

/// What the version of a policy begins with that is in force for those who list it, and for nobody else; no hexadecimal digit.
const LISTED: char = 's';

/// Whether a policy of this version is in force only for those who list it.
pub fn is_listed_only(version: &str) -> bool {
    version.starts_with(LISTED)
}

fn encoded(type_url: &str, name: String, message: &impl Message) -> SavedResource {
    let body = message.encode_to_vec();
    // Only ever compared with other versions of the same name, so 64 bits are plenty.
    let version = format!("{:016x}", crc64(&body));
    SavedResource { type_url: type_url.to_owned(), name, version, body }
}

impl From<SavedResource> for discovery::Resource {
    fn from(resource: SavedResource) -> Self {
        let SavedResource { type_url, name, version, body } = resource;
        Self { version, resource: Some(prost_types::Any { type_url, value: body }), name, ..Self::default() }
    }
}

impl TryFrom<discovery::Resource> for SavedResource {
    type Error = BadResource;

    fn try_from(resource: discovery::Resource) -> Result<Self, BadResource> {
        let discovery::Resource { version, resource, name, aliases: _, ttl: _ } = resource;
        match resource {
            Some(prost_types::Any { type_url, value }) => Ok(Self { type_url, name, version, body: value }),
            None => Err(BadResource::Empty { name }),
        }
    }
}
