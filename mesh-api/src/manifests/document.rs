//! From the text of a file to its documents, each with its line and, if it can be told, what object it is.
//!
//! The text is cut at the document markers first, so that a fault in one document cannot swallow the next.

use serde_json::{Map, Value};

use super::kind::{Kind, ObjectRef};
use super::texts::{self, NamedNull, Texts};

/// One document of a file.
pub(super) struct Document {
    /// Its first line, from 1.
    pub(super) line: usize,
    /// What it holds, or why that cannot be read.
    pub(super) content: Result<Value, Fault>,
    /// Its text, to find out what a broken one was meant to be.
    pub(super) text: String,
}

/// A document cannot be read.
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) error: String,
}

/// Nested deeper than any manifest, and far from what a stack bears.
const MAX_DEPTH: usize = 64;

/// The documents of a YAML text that are not blank.
pub(super) fn yaml(text: &str) -> Vec<Document> {
    let parts = split(text).into_iter().filter(|(_, part)| !is_blank(part));
    parts.map(|(line, part)| Document { line, content: parse_yaml(&part, line), text: part }).collect()
}

/// The documents of a JSON text: values one after the other. After the first fault nothing can be told apart any more.
pub(super) fn json(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let start = values.byte_offset();
        let rest = &text[start..];
        let blank = rest.len() - rest.trim_start().len();
        let line = 1 + text[..start + blank].matches('\n').count();
        match values.next() {
            None => return documents,
            Some(Ok(value)) => documents.push(Document { line, content: Ok(value), text: String::new() }),
            Some(Err(error)) => {
                let fault = Fault { line: error.line(), error: error.to_string() };
                documents.push(Document { line, content: Err(fault), text: rest.to_owned() });
                return documents;
            }
        }
    }
}

/// Cuts at `---` and `...`, which YAML keeps for this at the start of a line. What follows the marker on its line is kept.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(1, String::new())];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = ["---", "..."].into_iter().find(|marker| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        });
        if marker.is_some() {
            parts.push((index + 1, String::new()));
        }
        if let Some((_, part)) = parts.last_mut() {
            match marker {
                Some(marker) => part.push_str(&line.replacen(marker, "   ", 1)),
                None => part.push_str(line),
            }
        }
    }
    parts
}

fn is_blank(part: &str) -> bool {
    part.lines().all(|line| {
        let line = line.trim_start_matches('\u{feff}').trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    })
}

fn parse_yaml(part: &str, line: usize) -> Result<Value, Fault> {
    fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
        // Duplicate keys are an error by default: of two values, nobody could tell which one was meant.
        let options = serde_saphyr::options! {
            with_snippet: false,
            budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        };
        serde_saphyr::from_str_with_options(text, options)
    }
    let value = read::<Value>(part).map(|value| match texts::misread(&value) {
        // Where something else stands in the place of a text, whoever reads the object complains.
        true => read(part).map_or(value, |Texts(value)| value),
        false => value,
    });
    let value = value.map(|mut value| {
        if let Some(name) = value.pointer_mut("/metadata/name").filter(|name| name.is_null())
            && read::<NamedNull>(part).is_ok_and(|object| object.is_spelt(part))
        {
            *name = Value::String(texts::NULL.to_owned());
        }
        value
    });
    value.map_err(|error| {
        // Read once more where it stands in the file, so that the message counts lines as the reader's editor does.
        let placed = read::<Value>(&format!("{}{part}", "\n".repeat(line - 1))).err().unwrap_or(error);
        let at = placed.location().map_or(line, |location| usize::try_from(location.line()).unwrap_or(line));
        Fault { line: at.max(line), error: placed.to_string() }
    })
}

/// The objects of a document: itself, or the items of a `List`.
pub(super) fn objects(value: Value) -> Vec<Value> {
    match value {
        Value::Object(mut list) if is_list(&list) => match list.remove("items") {
            Some(Value::Array(items)) => items.into_iter().flat_map(objects).collect(),
            _ => Vec::new(),
        },
        other => vec![other],
    }
}

fn is_list(object: &Map<String, Value>) -> bool {
    object.get("kind").and_then(Value::as_str) == Some("List")
        && object.get("apiVersion").and_then(Value::as_str) == Some("v1")
}

/// What a document says it is.
pub(super) struct Header {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl Header {
    /// From what was read.
    pub(super) fn of(value: &Value) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let metadata = value.get("metadata");
        Self {
            api_version: text(value.get("apiVersion")).unwrap_or_default(),
            kind: text(value.get("kind")).unwrap_or_default(),
            namespace: text(metadata.and_then(|metadata| metadata.get("namespace"))).filter(|text| !text.is_empty()),
            name: text(metadata.and_then(|metadata| metadata.get("name"))).unwrap_or_default(),
        }
    }

    /// From the text of a document that cannot be read: the lines that carry its name, if they stand where they usually do. Enough to
    /// keep the last good version, or to refuse in the name of a broken policy.
    pub(super) fn guess(text: &str) -> Self {
        let mut header = Self { api_version: String::new(), kind: String::new(), namespace: None, name: String::new() };
        // JSON's outermost fields are indented, YAML's are not.
        let outermost =
            lines(text).filter(|line| matches!(line.key, "apiVersion" | "kind")).map(|line| line.indent).min();
        let mut inside: Option<usize> = None;
        let mut under_metadata = false;
        for Line { indent, key, value } in lines(text) {
            if Some(indent) == outermost {
                (under_metadata, inside) = (key == "metadata", None);
                match key {
                    "apiVersion" => header.api_version = value.to_owned(),
                    "kind" => header.kind = value.to_owned(),
                    "metadata" if value.starts_with('{') => header.take_names(value),
                    _ => {}
                }
            } else if under_metadata && *inside.get_or_insert(indent) == indent {
                match key {
                    "name" => header.name = value.to_owned(),
                    "namespace" => header.namespace = Some(value.to_owned()).filter(|text| !text.is_empty()),
                    _ => {}
                }
            }
        }
        header
    }

    /// From metadata that is written in one line.
    fn take_names(&mut self, metadata: &str) {
        let metadata = parse_yaml(metadata, 1).unwrap_or_default();
        let text = |name: &str| metadata.get(name).and_then(Value::as_str).map(str::to_owned);
        self.name = text("name").unwrap_or_default();
        self.namespace = text("namespace").filter(|text| !text.is_empty());
    }

    /// The kind, if it is one of ours.
    pub(super) fn known_kind(&self) -> Option<Kind> {
        match (self.group_and_version().0, self.kind.as_str()) {
            // Without an apiVersion it can only be meant as one of these, and must not pass for nothing.
            ("", kind @ ("AuthorizationPolicy" | "PeerAuthentication")) => Kind::of("security.istio.io", kind),
            (group, kind) => Kind::of(group, kind),
        }
    }

    /// Whether the version is one that is understood.
    pub(super) fn version_is_known(&self, kind: Kind) -> bool {
        kind.versions().contains(&self.group_and_version().1)
    }

    /// What the object is called, if its name is one that Kubernetes allows.
    pub(super) fn object(&self, kind: Kind) -> Result<ObjectRef, String> {
        let namespace = match kind {
            kind if kind.is_of_cluster() => String::new(),
            _ => self.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        };
        // These names become keys, file names and log fields.
        if !is_dns_name(&self.name, 253) {
            return Err(format!("metadata.name {:?} is not a name that Kubernetes allows", clip(&self.name)));
        }
        if !kind.is_of_cluster() && !is_dns_name(&namespace, 63) {
            return Err(format!("metadata.namespace {:?} is not a name that Kubernetes allows", clip(&namespace)));
        }
        Ok(ObjectRef { kind, namespace, name: self.name.clone() })
    }

    fn group_and_version(&self) -> (&str, &str) {
        self.api_version.split_once('/').unwrap_or(("", &self.api_version))
    }
}

/// A line of a document that looks like a field.
struct Line<'a> {
    indent: usize,
    key: &'a str,
    value: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once(':')?;
        let value = value.split(" #").next().unwrap_or_default().trim_matches([' ', '"', '\'', ',']);
        Some(Line { indent: line.len() - line.trim_start().len(), key: key.trim_matches(['"', '\u{feff}']), value })
    })
}

/// Drops what is `null`, which Kubernetes takes as absent; inside lists it stays, and is an error there.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// Writes the namespace into an object that leaves it to the default, so that readers need not know the default.
pub(super) fn with_namespace(mut value: Value, object: &ObjectRef) -> Value {
    if !object.kind.is_of_cluster()
        && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("namespace".to_owned(), Value::String(object.namespace.clone()));
    }
    value
}

/// RFC 1123 subdomain.
fn is_dns_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && text.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
