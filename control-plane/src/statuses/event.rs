//! Events: what of an object is not carried out as written, where the object has no condition of ours to say it in.
//!
//! An Event has a name made of what it says. So the API server itself refuses it a second time, whichever control plane writes it and
//! however often one starts, until it has forgotten the first (after an hour, unless it was set up otherwise).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{ObjectRef, Rejected};
use serde_json::{Value, json};

use super::Needed;
use crate::compile::Problem;

/// The API server refuses longer notes (events.k8s.io/v1, `note`: less than 1 kB), and counts bytes.
const NOTE: usize = 1000;
/// Of a name with ours behind it, so that both fit into the 253 that a name may have.
const STEM: usize = 200;

/// Something to be told of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of this one.
    pub object: ObjectRef,
    /// All there is to say.
    pub note: String,
}

/// One for each object that is no policy and is not carried out as written, or cannot be understood.
pub(super) fn needed<'a>(
    rejected: &'a [Rejected],
    problems: impl Iterator<Item = &'a Problem>,
) -> impl Iterator<Item = Needed> {
    let mut said: BTreeMap<ObjectRef, Vec<&str>> = BTreeMap::new();
    let refused = rejected.iter().filter_map(|document| Some((document.object()?, document.error.as_str())));
    let problems = problems.map(|problem| (problem.object.clone(), problem.text.as_str()));
    for (object, text) in refused.chain(problems).filter(|(object, _)| !object.kind.is_policy()) {
        said.entry(object).or_default().push(text);
    }
    let events =
        said.into_iter().map(|(object, texts)| Event { object, note: cut(&texts.join("; "), NOTE).to_owned() });
    events.map(Needed::Event)
}

impl Event {
    /// Where Events of the object are. Those of what is in no namespace are in `default`, as everybody writes them.
    pub fn path(&self) -> String {
        format!("/apis/events.k8s.io/v1/namespaces/{}/events", mesh_kube::escape(self.namespace()))
    }

    fn namespace(&self) -> &str {
        if self.object.kind.is_of_cluster() { "default" } else { &self.object.namespace }
    }

    /// The Event, of the object with this uid, from the control plane of this name.
    pub fn body(&self, uid: &str, from: &str, now: Timestamp) -> Value {
        let ObjectRef { kind, namespace, name } = &self.object;
        let mut hasher = DefaultHasher::new();
        (kind, uid, &self.note).hash(&mut hasher);
        let mut regarding = json!({"apiVersion": kind.resource().0, "kind": kind.as_str(), "name": name, "uid": uid});
        if !namespace.is_empty() {
            regarding["namespace"] = namespace.as_str().into();
        }
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": format!("{}.{:016x}", cut(name, STEM), hasher.finish()), "namespace": self.namespace()},
            "eventTime": format!("{now:.6}"),
            "reportingController": "culvert.io/control-plane",
            "reportingInstance": cut(from, 128),
            "action": "Compile",
            "reason": "NotAsWritten",
            "type": "Warning",
            "note": self.note,
            "regarding": regarding,
        })
    }
}

/// The start of a text, of at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mesh_api::manifests::Kind;

    use super::*;

    fn problem(kind: Kind, name: &str, text: &str) -> Problem {
        Problem {
            object: ObjectRef { kind, namespace: "shop".to_owned(), name: name.to_owned() },
            text: text.to_owned(),
        }
    }

    fn refused(kind: &str, name: &str) -> Rejected {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        Rejected { file: PathBuf::from("api"), line: 0, kind, name, error: "spec: nonsense".to_owned() }
    }

    fn events(rejected: &[Rejected], problems: &[Problem]) -> Vec<Event> {
        let one = |needed| if let Needed::Event(event) = needed { Some(event) } else { None };
        needed(rejected, problems.iter()).filter_map(one).collect()
    }

    #[test]
    fn each_object_has_one_event_that_says_all_and_a_policy_has_none() {
        let problems = [
            problem(Kind::Service, "web", "port 0 is no port"),
            problem(Kind::Service, "web", "\"x\" is not an address"),
            problem(Kind::AuthorizationPolicy, "p", "said in its condition"),
            problem(Kind::Pod, "cart", "é".repeat(2000).as_str()),
        ];
        let rejected = [
            refused("NetworkPolicy", "shop/n"),
            refused("Namespace", "loud"),
            refused("PeerAuthentication", "shop/p"),
            refused("Unheard", "shop/x"),
            refused("NetworkPolicy", ""),
        ];
        let said: Vec<_> = events(&rejected, &problems).into_iter().map(|e| (e.object.to_string(), e.note)).collect();
        let objects: Vec<_> = said.iter().map(|(object, _)| object.as_str()).collect();
        assert_eq!(objects, ["Namespace loud", "Pod shop/cart", "Service shop/web", "NetworkPolicy shop/n"]);
        assert_eq!(said[2].1, "port 0 is no port; \"x\" is not an address");
        assert_eq!((said[1].1.len(), said[3].1.as_str()), (NOTE, "spec: nonsense"));
    }

    #[test]
    fn the_same_has_the_same_name_and_anything_else_another() {
        let name = |note: &str, uid: &str, from: &str, at: &str| {
            let event = events(&[], &[problem(Kind::Pod, "cart", note)]).pop().expect("one");
            event.body(uid, from, at.parse().expect("a time"))["metadata"]["name"].as_str().expect("text").to_owned()
        };
        let first = name("a", "1", "one", "2026-01-01T00:00:00Z");
        assert!(first.starts_with("cart."), "{first}");
        assert_eq!(first, name("a", "1", "another", "2026-02-01T00:00:00Z"));
        assert_ne!(first, name("b", "1", "one", "2026-01-01T00:00:00Z"));
        assert_ne!(first, name("a", "2", "one", "2026-01-01T00:00:00Z"));
    }

    #[test]
    fn an_event_is_what_the_api_server_takes_also_of_the_longest_name() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let event = events(&[], &[problem(Kind::EndpointSlice, &"s".repeat(253), "odd")]).pop().expect("one");
        let body = event.body("u", "cp-1", now);
        assert_eq!(event.path(), "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert!(body["metadata"]["name"].as_str().is_some_and(|name| name.len() <= 253));
        assert_eq!(body["eventTime"], "2026-01-01T00:00:00.000000Z");
        assert_eq!(body["regarding"]["apiVersion"], "discovery.k8s.io/v1");
        // What is in no namespace.
        let event = events(&[refused("Namespace", "loud")], &[]).pop().expect("one");
        assert_eq!(event.path(), "/apis/events.k8s.io/v1/namespaces/default/events");
        assert!(event.body("u", "cp-1", now)["regarding"].get("namespace").is_none());
    }
}
