//! Texts that YAML takes for something else. In YAML 1.1 an unquoted `n`, `yes` or `off` is a boolean and `1.10` a number; as a name or a
//! label it is meant as it is written, and a policy whose name were nothing would have no effect.
//!
//! A document is read as it stands first; only one in which a text has come out as something else is read again, by these rules.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Fields that hold a text in every kind that is read.
const TEXTS: [&str; 9] =
    ["name", "namespace", "uid", "key", "serviceAccountName", "serviceAccount", "nodeName", "runtimeClassName", "zone"];
/// Those that hold texts by names of the user's.
const MAPS: [&str; 3] = ["labels", "annotations", "matchLabels"];
/// Those that hold a list of texts.
const LISTS: [&str; 8] = [
    "namespaces",
    "notNamespaces",
    "principals",
    "notPrincipals",
    "serviceAccounts",
    "notServiceAccounts",
    "values",
    "notValues",
];

/// What a place holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Anything,
    Text,
    TextsByName,
    ListOfTexts,
}

impl Place {
    /// What the field of this name holds, in an object at this place.
    fn field(self, name: &str) -> Self {
        match (self, name) {
            (Self::TextsByName, _) => Self::Text,
            (_, name) if TEXTS.contains(&name) => Self::Text,
            (_, name) if MAPS.contains(&name) => Self::TextsByName,
            (_, name) if LISTS.contains(&name) => Self::ListOfTexts,
            _ => Self::Anything,
        }
    }

    fn element(self) -> Self {
        if self == Self::ListOfTexts { Self::Text } else { Self::Anything }
    }
}

/// Whether a text came out as something else.
pub(super) fn misread(value: &Value) -> bool {
    fn at(place: Place, value: &Value) -> bool {
        match value {
            Value::Bool(_) | Value::Number(_) => place == Place::Text,
            Value::Object(object) => object.iter().any(|(name, value)| at(place.field(name), value)),
            Value::Array(list) => list.iter().any(|value| at(place.element(), value)),
            Value::Null | Value::String(_) => false,
        }
    }
    at(Place::Anything, value)
}

/// A value with its texts as they are written.
pub(super) struct Texts(pub(super) Value);

impl<'de> serde::Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Place::Anything.deserialize(deserializer).map(Self)
    }
}

impl<'de> DeserializeSeed<'de> for Place {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            // Nothing stays nothing: Kubernetes takes it as absent.
            Self::Text => deserializer.deserialize_option(self),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Place {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Text { "a text" } else { "a value" })
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::Text => deserializer.deserialize_str(self),
            _ => deserializer.deserialize_any(self),
        }
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element_seed(self.element())? {
            list.push(element);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self.field(&name))?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// How YAML spells nothing, which is a name that Kubernetes allows.
pub(super) const NULL: &str = "null";

/// An object whose name is nothing.
#[derive(serde::Deserialize)]
pub(super) struct NamedNull {
    metadata: Metadata,
}

#[derive(serde::Deserialize)]
struct Metadata {
    name: serde_saphyr::Spanned<()>,
}

impl NamedNull {
    /// Whether somebody wrote it, and did not just write no name.
    pub(super) fn is_spelt(&self, text: &str) -> bool {
        let span = self.metadata.name.referenced.span();
        let bytes = span.byte_offset().zip(span.byte_len());
        let spelt = bytes.and_then(|(at, len)| text.get(usize::try_from(at).ok()?..usize::try_from(at + len).ok()?));
        spelt == Some(NULL)
    }
}
