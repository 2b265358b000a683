//! How the fake server answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Shared;

type Answer = Response<Stream>;

const MERGE: &str = "application/merge-patch+json";

/// A body made of what is sent to it.
pub(super) struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

pub(super) async fn answer(shared: Shared, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let line = format!("{} {path}?{query}", head.method);
    let refusal = {
        let mut state = shared.state();
        state.note(line.clone());
        state.refusal(&line)
    };
    if let Some(status) = refusal {
        return Ok(refused(status));
    }
    if head.headers.get("authorization").is_none_or(|value| value != "Bearer secret") {
        return Ok(refused(401));
    }
    let body: Value = match body.collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
        Err(_) => return Ok(refused(400)),
    };
    let value =
        |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let node = value("fieldSelector").and_then(|selector| selector.strip_prefix("spec.nodeName%3D").map(str::to_owned));
    let place = Place::of(&path);
    if head.method == "GET"
        && let Some(said) = shared.state().said(&path)
    {
        return Ok(whole(200, &said));
    }
    Ok(match (head.method.as_str(), place.name.as_deref()) {
        ("GET", None) if value("watch").is_some() => {
            let from = value("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
            watch(shared, place.collection, node, from)
        }
        ("GET", None) => {
            let number = |name: &str| value(name).and_then(|text| text.parse().ok());
            let (start, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX / 2));
            whole(200, &shared.state().list(&place.collection, &place.namespace, node.as_deref(), start, limit))
        }
        ("GET", Some(name)) => match shared.state().find(&place.collection, &place.namespace, name) {
            Some(object) => whole(200, object),
            None => refused(404),
        },
        ("POST", None) if place.collection.ends_with("/tokenreviews") => {
            let token = body.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default().to_owned();
            let mut state = shared.state();
            state.post(&place.collection, body);
            whole(201, &json!({"status": state.review(&token)}))
        }
        ("POST", None) => {
            let mut state = shared.state();
            state.post(&place.collection, body.clone());
            let known = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            if state.find(&place.collection, &place.namespace, known).is_some() {
                refused(409)
            } else {
                whole(201, &state.put(&place.collection, body))
            }
        }
        ("PUT", Some(name)) => {
            let mut state = shared.state();
            let known = state.find(&place.collection, &place.namespace, name);
            let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
            match known {
                None => refused(404),
                Some(known) if version(known) != version(&body) => refused(409),
                Some(_) => whole(200, &state.put(&place.collection, body)),
            }
        }
        ("PATCH", Some(name)) if value("fieldManager").is_some() => apply(&shared, &place, name, body),
        ("PATCH", Some(name)) if head.headers.get("content-type").is_some_and(|kind| kind == MERGE) => {
            merge(&shared, &place, name, &path, &body)
        }
        ("PATCH", Some(name)) => patch(&shared, &place, name, &body),
        ("DELETE", Some(name)) => {
            let mut state = shared.state();
            let known = state.find(&place.collection, &place.namespace, name).is_some();
            state.delete(&place.collection, &place.namespace, name);
            drop(state);
            shared.changed.send_modify(|changed| *changed += 1);
            if known { whole(200, &json!({"kind": "Status", "status": "Success"})) } else { refused(404) }
        }
        _ => refused(405),
    })
}

/// Server-side apply by one who owns everything but the status.
fn apply(shared: &Shared, place: &Place, name: &str, mut object: Value) -> Answer {
    let mut state = shared.state();
    if let Some(known) = state.find(&place.collection, &place.namespace, name) {
        object["status"] = known["status"].clone();
    }
    let object = state.put(&place.collection, object);
    drop(state);
    shared.changed.send_modify(|changed| *changed += 1);
    whole(200, &object)
}

/// RFC 7386; of a subresource nothing but the status is changed, and of the object everything but that.
fn merge(shared: &Shared, place: &Place, name: &str, path: &str, body: &Value) -> Answer {
    fn into(target: &mut Value, patch: &Value) {
        let Value::Object(fields) = patch else { return *target = patch.clone() };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in fields {
            match (value, target.as_object_mut()) {
                (Value::Null, Some(target)) => drop(target.remove(key)),
                _ => into(&mut target[key], value),
            }
        }
    }
    let mut state = shared.state();
    let Some(known) = state.find(&place.collection, &place.namespace, name).cloned() else { return refused(404) };
    for key in ["/metadata/uid", "/metadata/resourceVersion"] {
        if body.pointer(key).is_some() && body.pointer(key) != known.pointer(key) {
            return refused(409);
        }
    }
    let mut object = known.clone();
    match path.ends_with("/status") {
        true => into(&mut object["status"], &body["status"]),
        false => {
            into(&mut object, body);
            object["status"] = known["status"].clone();
        }
    }
    if object["status"].is_null()
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    let object = state.put(&place.collection, object);
    drop(state);
    shared.changed.send_modify(|changed| *changed += 1);
    whole(200, &object)
}

/// The part of a strategic merge patch that is used: conditions by their type, labels, taints whole, and a uid or version that must be
/// the object's.
fn patch(shared: &Shared, place: &Place, name: &str, body: &Value) -> Answer {
    let mut state = shared.state();
    let Some(mut object) = state.find(&place.collection, &place.namespace, name).cloned() else { return refused(404) };
    for key in ["/metadata/uid", "/metadata/resourceVersion"] {
        if body.pointer(key).is_some() && body.pointer(key) != object.pointer(key) {
            return refused(409);
        }
    }
    if let Some(taints) = body.pointer("/spec/taints") {
        object["spec"]["taints"] = taints.clone();
    }
    for wanted in body.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
        let conditions = &mut object["status"]["conditions"];
        if conditions.is_null() {
            *conditions = json!([]);
        }
        let Some(list) = conditions.as_array_mut() else { return refused(422) };
        list.retain(|one| one.get("type") != wanted.get("type"));
        list.push(wanted.clone());
    }
    for (key, value) in body.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        let labels = &mut object["metadata"]["labels"];
        match (value, labels.as_object_mut()) {
            (Value::Null, Some(labels)) => drop(labels.remove(key)),
            (Value::Null, None) => {}
            _ => labels[key] = value.clone(),
        }
    }
    let object = state.put(&place.collection, object);
    drop(state);
    shared.changed.send_modify(|changed| *changed += 1);
    whole(200, &object)
}

/// What a path means.
struct Place {
    /// As of all namespaces.
    collection: String,
    namespace: String,
    name: Option<String>,
}

impl Place {
    /// `/api/v1/namespaces/NS/pods/NAME/status`, `/apis/G/V/RESOURCE`, …
    fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let root = if parts.first() == Some(&"api") { 2 } else { 3 };
        let (head, rest) = parts.split_at(root.min(parts.len()));
        let text = |part: Option<&&str>| part.map(|part| (*part).to_owned());
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => ((*namespace).to_owned(), rest),
            rest => (String::new(), rest),
        };
        let plural = rest.first().copied().unwrap_or_default();
        Self { collection: format!("/{}/{plural}", head.join("/")), namespace, name: text(rest.get(1)) }
    }
}

fn watch(shared: Shared, collection: String, node: Option<String>, from: u64) -> Answer {
    if !shared.state().is_kept(from) {
        return refused(410);
    }
    let (send, receive) = mpsc::channel(1);
    let mut told = shared.state().place(from);
    let mut changed = shared.changed.subscribe();
    tokio::spawn(async move {
        loop {
            let lines;
            (lines, told) = shared.state().lines(&collection, node.as_deref(), from, told);
            for line in lines {
                if send.send(Bytes::from(line + "\n")).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = send.closed() => return,
                changed = changed.changed() => if changed.is_err() { return },
            }
        }
    });
    Response::new(Stream(receive))
}

fn whole(status: u16, value: &Value) -> Answer {
    let (send, receive) = mpsc::channel(1);
    // There is room for one.
    let _ = send.try_send(Bytes::from(value.to_string()));
    let mut answer = Response::new(Stream(receive));
    *answer.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    answer
}

fn refused(status: u16) -> Answer {
    let reason = match status {
        410 => "Expired",
        409 => "Conflict",
        404 => "NotFound",
        403 => "Forbidden",
        _ => "Other",
    };
    whole(
        status,
        &json!({"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": "as asked"}),
    )
}
