//! Fields of resources, and why one cannot be used.

use std::net::IpAddr;

use mesh_model::BadIdentity;
use prost::Message;

use super::workload as wire;

/// A field of a resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadField {
    /// Needed and not there.
    #[error("field {0} is empty")]
    Missing(&'static str),
    /// A value that this build does not know.
    #[error("field {field} has the unknown value {value}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// Not 4 or 16 bytes.
    #[error("field {field} has an address of {length} bytes")]
    Address {
        /// The field.
        field: &'static str,
        /// How many.
        length: usize,
    },
    /// Not a port.
    #[error("field {field} has {value}, which is not a port")]
    Port {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// Not a key of the form that the field holds.
    #[error("field {field} has {text:?}, which is not of the form namespace/name")]
    Key {
        /// The field.
        field: &'static str,
        /// Its value, clipped.
        text: String,
    },
    /// Not an identity.
    #[error(transparent)]
    Identity(#[from] BadIdentity),
    /// Something this mesh does not do.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// One of our own extensions cannot be read.
    #[error("extension {name} cannot be read: {problem}")]
    Extension {
        /// Which.
        name: &'static str,
        /// Why.
        problem: String,
    },
}

/// Our extension of this name; the default where there is none.
pub(super) fn extension<M: Message + Default>(name: &'static str, all: &[wire::Extension]) -> Result<M, BadField> {
    let mut ours = all.iter().filter(|extension| extension.name == name);
    let Some(extension) = ours.next() else { return Ok(M::default()) };
    if ours.next().is_some() {
        return Err(BadField::Extension { name, problem: "it is there twice".to_owned() });
    }
    let body = extension.config.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    M::decode(body).map_err(|error| BadField::Extension { name, problem: error.to_string() })
}

/// An enum value that this build knows.
pub(super) fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, BadField> {
    E::try_from(value).map_err(|_| BadField::UnknownValue { field, value })
}

/// An address of 4 or 16 bytes, in its canonical form.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, BadField> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(v6).to_canonical())
    } else {
        Err(BadField::Address { field, length: bytes.len() })
    }
}

pub(super) fn port(field: &'static str, value: u32) -> Result<u16, BadField> {
    u16::try_from(value).ok().filter(|port| *port != 0).ok_or(BadField::Port { field, value })
}

pub(super) fn filled(field: &'static str, text: String) -> Result<String, BadField> {
    if text.is_empty() { Err(BadField::Missing(field)) } else { Ok(text) }
}

/// Foreign text in an error message stays short.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}
