//! The definitions in manifests/chart/crds against the types here, both ways: a field that one has and the other lacks would be a field
//! that people may write and nobody reads, or one that is read and that the API server knows nothing of.
//!
//! The types' side is what their derived `Deserialize` asks for, recorded by a deserializer that answers whatever is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use super::*;

/// What a value looks like, on either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Shape {
    #[default]
    Text,
    OneOf(BTreeSet<String>),
    List(Box<Shape>),
    Map(Box<Shape>),
    Fields(BTreeMap<String, Shape>),
}

/// Answers whatever is asked for, and records it.
struct Asked<'a>(&'a mut Shape);

macro_rules! numbers {
    ($($name:ident)*) => {
        $(fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_u64(1)
        })*
    };
}

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("x")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut item = Shape::Text;
        let value = visitor.visit_seq(Once(&mut item, false))?;
        *self.0 = Shape::List(item.into());
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut item = Shape::Text;
        let value = visitor.visit_map(Once(&mut item, false))?;
        *self.0 = Shape::Map(item.into());
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut fields = BTreeMap::new();
        let value = visitor.visit_map(Each { names, at: 0, fields: &mut fields })?;
        *self.0 = Shape::Fields(fields);
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Shape::OneOf(variants.iter().map(|one| (*one).to_owned()).collect());
        visitor.visit_enum(First(variants[0]))
    }

    numbers! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 }

    serde::forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct identifier ignored_any
    }
}

/// One item, or one entry.
struct Once<'a>(&'a mut Shape, bool);

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if std::mem::replace(&mut self.1, true) { Ok(None) } else { seed.deserialize(Asked(self.0)).map(Some) }
    }
}

impl<'de> MapAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        // Whatever it is: on the wire a key is a text.
        let mut key = Shape::Text;
        if std::mem::replace(&mut self.1, true) { Ok(None) } else { seed.deserialize(Asked(&mut key)).map(Some) }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Asked(self.0))
    }
}

/// Each field of a type.
struct Each<'a> {
    names: &'static [&'static str],
    at: usize,
    fields: &'a mut BTreeMap<String, Shape>,
}

impl<'de> MapAccess<'de> for Each<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.get(self.at) else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = (*name).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let mut shape = Shape::Text;
        let value = seed.deserialize(Asked(&mut shape))?;
        self.fields.insert(self.names[self.at].to_owned(), shape);
        self.at += 1;
        Ok(value)
    }
}

/// The first of its variants, which all stand alone.
struct First(&'static str);

impl<'de> EnumAccess<'de> for First {
    type Error = Error;
    type Variant = Alone;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Alone), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, Alone))
    }
}

struct Alone;

impl<'de> serde::de::VariantAccess<'de> for Alone {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(serde::de::Error::custom("a variant with a value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("a variant with values"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("a variant with fields"))
    }
}

fn of_type<T: DeserializeOwned + fmt::Debug>() -> Shape {
    let mut shape = Shape::Text;
    T::deserialize(Asked(&mut shape)).expect("it takes whatever it asks for");
    shape
}

/// A part of an OpenAPI schema.
fn of_schema(place: &str, schema: &Value) -> Shape {
    let texts =
        |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    match schema["type"].as_str() {
        Some("string") if schema["enum"].is_array() => Shape::OneOf(texts(&schema["enum"])),
        Some("string") => Shape::Text,
        Some("array") => Shape::List(of_schema(&format!("{place}[]"), &schema["items"]).into()),
        Some("object") if schema["additionalProperties"].is_object() => {
            Shape::Map(of_schema(&format!("{place}.*"), &schema["additionalProperties"]).into())
        }
        Some("object") => {
            assert_eq!(
                schema["x-kubernetes-preserve-unknown-fields"], true,
                "{place}: a field that nobody knows must be kept, or an ALLOW would allow more than was written"
            );
            let fields = schema["properties"].as_object().unwrap_or_else(|| panic!("{place}: no properties"));
            Shape::Fields(
                fields.iter().map(|(name, one)| (name.clone(), of_schema(&format!("{place}.{name}"), one))).collect(),
            )
        }
        other => panic!("{place}: type {other:?}"),
    }
}

/// The `spec` of each version of a definition.
fn versions(file: &str) -> Vec<Value> {
    let path = format!("{}/../manifests/chart/crds/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let definition = crate::manifests::read_yaml(&text).expect("YAML").remove(0);
    let versions = definition["spec"]["versions"].as_array().expect("versions").clone();
    for version in &versions {
        assert!(version["subresources"]["status"].is_object(), "{file}: statuses are a subresource");
    }
    versions.into_iter().map(|one| one["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()).collect()
}

#[test]
fn the_definitions_have_exactly_the_fields_of_the_types_and_each_version_the_same() {
    for (file, wanted) in [
        ("authorizationpolicies.yaml", of_type::<AuthorizationSpec>()),
        ("peerauthentications.yaml", of_type::<PeerSpec>()),
    ] {
        let versions = versions(file);
        assert_eq!(versions.len(), 2, "v1 and v1beta1");
        assert!(versions.iter().all(|one| *one == versions[0]), "{file}: versions differ");
        assert_eq!(of_schema("spec", &versions[0]), wanted, "{file}");
    }
}

#[test]
fn what_a_type_asks_for_is_seen_to_the_last_field() {
    let Shape::Fields(spec) = of_type::<AuthorizationSpec>() else { panic!("fields") };
    let Shape::List(rule) = &spec["rules"] else { panic!("a list") };
    let Shape::Fields(rule) = &**rule else { panic!("fields") };
    let Shape::List(from) = &rule["from"] else { panic!("a list") };
    let Shape::Fields(from) = &**from else { panic!("fields") };
    let Shape::Fields(source) = &from["source"] else { panic!("fields") };
    assert_eq!(source["notRemoteIpBlocks"], Shape::List(Shape::Text.into()));
    assert_eq!(source.len(), 12);
    assert!(matches!(&spec["action"], Shape::OneOf(values) if values.len() == 4));
}
