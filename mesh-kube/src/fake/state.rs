//! What the fake server knows: objects, what happened to them, and how it is to misbehave.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// One thing that happened.
#[derive(Clone)]
struct Happened {
    version: u64,
    collection: String,
    what: What,
}

#[derive(Clone)]
enum What {
    Object { before: Option<Value>, after: Option<Value> },
    Line(String),
}

/// See the module.
#[derive(Default)]
pub(super) struct State {
    version: u64,
    /// Collection → (namespace, name) → object.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    history: Vec<Happened>,
    /// What happened up to here is not kept.
    compacted: u64,
    held: BTreeSet<String>,
    refusals: Vec<(String, u16, u32)>,
    log: Vec<String>,
    posted: Vec<(String, Value)>,
    tokens: BTreeMap<String, Value>,
    said: BTreeMap<String, Value>,
}

impl State {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn put(&mut self, collection: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = key(&object);
        let before = self.objects.get(collection).and_then(|all| all.get(&key)).cloned();
        let uid = before.as_ref().and_then(|before| before.pointer("/metadata/uid").cloned());
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
            metadata.entry("uid").or_insert_with(|| uid.unwrap_or_else(|| format!("uid-{}", key.1).into()));
        }
        self.objects.entry(collection.to_owned()).or_default().insert(key, object.clone());
        self.happened(collection, What::Object { before, after: Some(object.clone()) });
        object
    }

    pub(super) fn delete(&mut self, collection: &str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.get_mut(collection).and_then(|all| all.remove(&key)) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.happened(collection, What::Object { before: Some(object), after: None });
    }

    pub(super) fn say(&mut self, collection: &str, line: &str) {
        self.version += 1;
        self.happened(collection, What::Line(line.to_owned()));
    }

    fn happened(&mut self, collection: &str, what: What) {
        self.history.push(Happened { version: self.version, collection: collection.to_owned(), what });
    }

    pub(super) fn find(&self, collection: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(collection)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
    }

    pub(super) fn hold(&mut self, collection: &str, held: bool) {
        if held {
            self.held.insert(collection.to_owned());
        } else {
            self.held.remove(collection);
        }
    }

    pub(super) fn refuse(&mut self, what: &str, status: u16, times: u32) {
        self.refusals.push((what.to_owned(), status, times));
    }

    pub(super) fn forgive(&mut self) {
        self.refusals.clear();
    }

    pub(super) fn refusal(&mut self, request: &str) -> Option<u16> {
        let (_, status, left) =
            self.refusals.iter_mut().find(|(what, _, left)| *left > 0 && request.contains(what.as_str()))?;
        *left -= 1;
        Some(*status)
    }

    pub(super) fn note(&mut self, request: String) {
        self.log.push(request);
    }

    pub(super) fn log(&self) -> &[String] {
        &self.log
    }

    pub(super) fn post(&mut self, collection: &str, object: Value) {
        self.posted.push((collection.to_owned(), object));
    }

    pub(super) fn posted(&self, collection: &str) -> Vec<Value> {
        self.posted.iter().filter(|(of, _)| of == collection).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn token(&mut self, token: &str, status: Value) {
        self.tokens.insert(token.to_owned(), status);
    }

    pub(super) fn review(&self, token: &str) -> Value {
        self.tokens.get(token).cloned().unwrap_or_else(|| json!({"authenticated": false, "error": "unknown"}))
    }

    pub(super) fn say_at(&mut self, path: &str, answer: Value) {
        self.said.insert(path.to_owned(), answer);
    }

    pub(super) fn said(&self, path: &str) -> Option<Value> {
        self.said.get(path).cloned()
    }

    /// A page of a list: of this namespace unless it is empty, from `start`, at most `limit`. The rest, if any, begins where `continue` says.
    pub(super) fn list(
        &self,
        collection: &str,
        namespace: &str,
        node: Option<&str>,
        start: usize,
        limit: usize,
    ) -> Value {
        let all = self.objects.get(collection).into_iter().flatten();
        let all = all.filter(|((of, _), _)| namespace.is_empty() || of == namespace).map(|(_, object)| object);
        let matching: Vec<&Value> = all.filter(|object| selected(object, node)).collect();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if start + limit < matching.len() {
            metadata["continue"] = (start + limit).to_string().into();
        }
        let items: Vec<&Value> = matching.into_iter().skip(start).take(limit).collect();
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
    }

    /// Whether a watch may begin here.
    pub(super) fn is_kept(&self, version: u64) -> bool {
        version >= self.compacted
    }

    /// Lines for a watch that has been told the first `told` of what happened, and how many it has been told then.
    pub(super) fn lines(&self, collection: &str, node: Option<&str>, from: u64, told: usize) -> (Vec<String>, usize) {
        if self.held.contains(collection) {
            return (Vec::new(), told);
        }
        let fresh = self.history[told..].iter().filter(|one| one.collection == collection && one.version > from);
        let lines = fresh.filter_map(|one| match &one.what {
            What::Line(line) => Some(line.clone()),
            What::Object { before, after } => {
                let was = before.as_ref().is_some_and(|before| selected(before, node));
                let is = after.as_ref().is_some_and(|after| selected(after, node));
                let kind = match (was, is) {
                    (false, true) => "ADDED",
                    (true, true) => "MODIFIED",
                    (true, false) => "DELETED",
                    (false, false) => return None,
                };
                let object = after.as_ref().or(before.as_ref());
                Some(json!({"type": kind, "object": object}).to_string())
            }
        });
        (lines.collect(), self.history.len())
    }

    /// Where a watch that begins after this version stands in what happened.
    pub(super) fn place(&self, from: u64) -> usize {
        self.history.iter().position(|one| one.version > from).unwrap_or(self.history.len())
    }
}

fn selected(object: &Value, node: Option<&str>) -> bool {
    node.is_none() || object.pointer("/spec/nodeName").and_then(Value::as_str) == node
}

fn key(object: &Value) -> (String, String) {
    let text = |name: &str| object.pointer(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/metadata/namespace"), text("/metadata/name"))
}
