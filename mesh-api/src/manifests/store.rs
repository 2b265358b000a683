//! Objects as the API server tells them: a list, then changes, one object at a time. The conversion is that of the files.
//!
//! It narrows on bad input as the file source does: an object that cannot be read is named, its last good version stays, and a broken
//! security policy that has none becomes one that refuses. Pure: who asks the server is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use super::document::{self, Header};
use super::kind::{self, ObjectRef};
use super::{Kind, Objects, Rejected};

/// Where its complaints say that an object is.
const ORIGIN: &str = "API server";

/// What one object led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What is known is another thing now.
    Made,
    /// It was older than what is known, or known to be gone.
    Old,
    /// It cannot be used; it is named here and among the complaints.
    Refused(Rejected),
}

/// All that is known, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Store {
    objects: Objects,
    rejected: BTreeMap<(Kind, String), Rejected>,
    /// What the list that is being read has named so far.
    listing: BTreeMap<Kind, BTreeSet<(Kind, String)>>,
    /// Everything up to this version has been heard of a kind. Versions are compared as numbers, which Kubernetes allows for objects of
    /// one kind (KEP-5504); those of a server that does otherwise are not compared.
    positions: BTreeMap<Kind, u64>,
    /// Asked for by name and not heard of since: a list that is older must not take them away.
    ahead: BTreeSet<(Kind, String)>,
}

impl Store {
    /// What is known.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What could not be read, in the order of kinds and names.
    pub fn rejected(&self) -> Vec<Rejected> {
        self.rejected.values().cloned().collect()
    }

    /// A part of a list: an item, without the `apiVersion` and `kind` that lists leave out. A list is believed whatever was known: a
    /// server that was set back to an earlier state tells its truth too.
    pub fn item(&mut self, kind: Kind, value: Value) -> Change {
        let name = self.put(kind, value);
        let listing = self.listing.entry(kind).or_default();
        match name {
            Ok(object) => {
                listing.insert((kind, object.full_name()));
                Change::Made
            }
            Err(rejected) => {
                listing.insert((kind, rejected.name.clone()));
                Change::Refused(rejected)
            }
        }
    }

    /// A list begins anew: what an unfinished one has named counts for nothing.
    pub fn list(&mut self, kind: Kind) {
        self.listing.insert(kind, BTreeSet::new());
    }

    /// The list is complete: what it did not name is gone.
    pub fn listed(&mut self, kind: Kind, version: &str) {
        let named = self.listing.remove(&kind).unwrap_or_default();
        for object in kind::names(&self.objects, kind) {
            let name = (kind, object.full_name());
            let is_ahead = self.ahead.contains(&name)
                && number(kind::metadata(&self.objects, &object).and_then(|known| known.resource_version.as_deref()))
                    .zip(number(Some(version)))
                    .is_some_and(|(known, listed)| known > listed);
            if !named.contains(&name) && !is_ahead {
                kind::remove(&mut self.objects, &object);
            }
        }
        // Once is enough: versions may have gone back.
        self.ahead.retain(|name| name.0 != kind);
        self.rejected.retain(|key, _| key.0 != kind || named.contains(key));
        self.positions.remove(&kind);
        self.heard(kind, version);
    }

    /// An object was made or changed.
    pub fn changed(&mut self, kind: Kind, value: Value) -> Change {
        self.heard(kind, version_of(&value).unwrap_or_default());
        if self.is_older(kind, &value) {
            return Change::Old;
        }
        self.ahead.remove(&(kind, raw_name(kind, &header(kind, &value))));
        self.put(kind, value).into()
    }

    /// An object was deleted. One that was asked for since, and is newer, is another of its name.
    pub fn gone(&mut self, kind: Kind, value: &Value) -> Change {
        let header = header(kind, value);
        self.heard(kind, version_of(value).unwrap_or_default());
        if self.is_older(kind, value) {
            return Change::Old;
        }
        let change = match header.object(kind) {
            Ok(object) => {
                let name = (kind, object.full_name());
                self.rejected.remove(&name);
                self.ahead.remove(&name);
                kind::remove(&mut self.objects, &object);
                Change::Made
            }
            Err(error) => Change::Refused(rejected(kind, &header, error)),
        };
        // Named by a list that is being read, and gone since: it is not to be taken for one that stays.
        if let Some(listing) = self.listing.get_mut(&kind) {
            listing.remove(&(kind, raw_name(kind, &header)));
        }
        change
    }

    /// Everything of the kind up to this version has been heard.
    pub fn heard(&mut self, kind: Kind, version: &str) {
        if let Ok(version) = version.parse::<u64>() {
            let position = self.positions.entry(kind).or_default();
            *position = version.max(*position);
        }
    }

    /// An object that was asked for by name while the watch goes on. It counts only if it is ahead of the watch: what the watch has
    /// passed and does not know has been deleted since.
    pub fn learn(&mut self, kind: Kind, value: Value) -> Change {
        let asked = version_of(&value).and_then(|version| version.parse::<u64>().ok());
        let passed = asked.zip(self.positions.get(&kind)).is_some_and(|(asked, heard)| asked <= *heard);
        if passed || self.is_older(kind, &value) {
            return Change::Old;
        }
        let put = self.put(kind, value);
        if let Ok(object) = &put {
            self.ahead.insert((kind, object.full_name()));
        }
        put.into()
    }

    /// Whether something newer is known under its name, be it another object: a pod that was made anew is asked for while the watch still
    /// tells of the one before.
    fn is_older(&self, kind: Kind, value: &Value) -> bool {
        let Ok(object) = header(kind, value).object(kind) else { return false };
        let Some(known) = kind::metadata(&self.objects, &object) else { return false };
        number(version_of(value)).zip(number(known.resource_version.as_deref())).is_some_and(|(new, old)| new < old)
    }

    fn put(&mut self, kind: Kind, value: Value) -> Result<ObjectRef, Rejected> {
        let value = document::without_nulls(value);
        let header = header(kind, &value);
        let object = match header.object(kind) {
            Ok(object) => object,
            Err(error) => {
                let rejected = rejected(kind, &header, error);
                self.rejected.insert((kind, rejected.name.clone()), rejected.clone());
                return Err(rejected);
            }
        };
        let value = document::with_namespace(value, &object);
        match kind::add(&mut self.objects, &object, value.clone(), None) {
            Ok(()) => {
                self.rejected.remove(&(kind, object.full_name()));
                Ok(object)
            }
            Err(error) => {
                kind::stand_in_place(&mut self.objects, &object, &value, &error);
                let rejected = rejected(kind, &header, error);
                self.rejected.insert((kind, rejected.name.clone()), rejected.clone());
                Err(rejected)
            }
        }
    }
}

impl From<Result<ObjectRef, Rejected>> for Change {
    fn from(put: Result<ObjectRef, Rejected>) -> Self {
        match put {
            Ok(_) => Self::Made,
            Err(rejected) => Self::Refused(rejected),
        }
    }
}

/// Items of a list do not say what they are: the list does.
fn header(kind: Kind, value: &Value) -> Header {
    let mut header = Header::of(value);
    header.api_version = kind.resource().0.to_owned();
    header.kind = kind.as_str().to_owned();
    header
}

fn raw_name(kind: Kind, header: &Header) -> String {
    match header.object(kind) {
        Ok(object) => object.full_name(),
        Err(_) => {
            let text = format!("{}/{}", header.namespace.as_deref().unwrap_or_default(), header.name);
            // It goes into logs and is nothing that Kubernetes allows.
            text.chars().take(320).collect()
        }
    }
}

fn rejected(kind: Kind, header: &Header, error: String) -> Rejected {
    let name = raw_name(kind, header);
    Rejected { file: PathBuf::from(ORIGIN), line: 0, kind: kind.as_str().to_owned(), name, error }
}

fn number(version: Option<&str>) -> Option<u64> {
    version?.parse().ok()
}

fn version_of(value: &Value) -> Option<&str> {
    value.pointer("/metadata/resourceVersion").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
            "spec": {"nodeName": "n1", "containers": []}})
    }

    fn names(store: &Store) -> Vec<&str> {
        store.objects().pods.keys().map(|(_, name)| name.as_str()).collect()
    }

    fn version<'a>(store: &'a Store, name: &str) -> Option<&'a str> {
        store.objects().pods.get(&("shop".to_owned(), name.to_owned()))?.metadata.resource_version.as_deref()
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_name_and_nothing_before_it_is_complete() {
        let mut store = Store::default();
        for name in ["a", "b", "c"] {
            store.item(Kind::Pod, pod(name, 5));
        }
        store.listed(Kind::Pod, "7");
        assert_eq!(names(&store), ["a", "b", "c"]);
        store.list(Kind::Pod);
        store.item(Kind::Pod, pod("a", 9));
        assert_eq!(names(&store), ["a", "b", "c"]);
        // Cut, and begun anew: what the unfinished one named counts for nothing.
        store.list(Kind::Pod);
        store.item(Kind::Pod, pod("b", 9));
        store.item(Kind::Pod, pod("d", 9));
        store.listed(Kind::Pod, "9");
        assert_eq!(names(&store), ["b", "d"]);
    }

    #[test]
    fn a_list_is_believed_even_if_its_versions_have_gone_back() {
        let mut store = Store::default();
        store.item(Kind::Pod, pod("a", 900));
        store.listed(Kind::Pod, "900");
        store.list(Kind::Pod);
        store.item(Kind::Pod, pod("a", 3));
        store.listed(Kind::Pod, "3");
        assert_eq!(version(&store, "a"), Some("3"));
        assert_eq!(store.changed(Kind::Pod, pod("a", 4)), Change::Made);
    }

    #[test]
    fn what_was_asked_for_counts_only_while_it_is_ahead_of_the_watch() {
        let mut store = Store::default();
        store.listed(Kind::Pod, "10");
        assert_eq!(store.learn(Kind::Pod, pod("a", 12)), Change::Made);
        assert_eq!(store.changed(Kind::Pod, pod("a", 12)), Change::Made);
        // Deleted, heard, and only then does an answer from before arrive.
        store.gone(Kind::Pod, &pod("a", 15));
        assert_eq!(store.learn(Kind::Pod, pod("a", 13)), Change::Old);
        assert_eq!(names(&store), [""; 0]);
        // Asked for, and the watch still replays what was before.
        assert_eq!(store.learn(Kind::Pod, pod("b", 30)), Change::Made);
        assert_eq!(store.changed(Kind::Pod, pod("b", 20)), Change::Old);
        assert_eq!(version(&store, "b"), Some("30"));
        // A list that was begun before does not take it away; the next one does.
        store.learn(Kind::Pod, pod("c", 40));
        for (at, left) in [("35", ["c"].as_slice()), ("35", &[])] {
            store.list(Kind::Pod);
            store.listed(Kind::Pod, at);
            assert_eq!(names(&store), left);
        }
    }

    #[test]
    fn what_the_watch_still_tells_of_the_last_owner_of_a_name_changes_nothing_for_the_next() {
        let of = |uid: &str, version| {
            let mut pod = pod("a", version);
            pod["metadata"]["uid"] = json!(uid);
            pod
        };
        let mut store = Store::default();
        store.listed(Kind::Pod, "10");
        assert_eq!(store.learn(Kind::Pod, of("next", 13)), Change::Made);
        assert_eq!(store.changed(Kind::Pod, of("last", 11)), Change::Old);
        assert_eq!(store.gone(Kind::Pod, &of("last", 12)), Change::Old);
        // Nor does a list from then.
        store.list(Kind::Pod);
        store.listed(Kind::Pod, "12");
        assert_eq!(version(&store, "a"), Some("13"));
        assert_eq!(store.changed(Kind::Pod, of("next", 13)), Change::Made);
        assert_eq!(store.gone(Kind::Pod, &of("next", 14)), Change::Made);
        assert_eq!(names(&store), [""; 0]);
    }

    #[test]
    fn a_broken_object_is_named_its_last_good_version_stays_and_a_policy_refuses() {
        let mut store = Store::default();
        store.item(Kind::Pod, pod("a", 1));
        store.listed(Kind::Pod, "1");
        let broken = json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "2", "uid": "uid-a"}, "spec": {"nodeName": 5}});
        assert!(matches!(store.changed(Kind::Pod, broken), Change::Refused(_)));
        assert_eq!(version(&store, "a"), Some("1"));
        assert_eq!(
            store.rejected()[0].to_string().split(": ").take(2).collect::<Vec<_>>(),
            ["API server", "Pod shop/a"]
        );
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"acton": "DENY"}});
        assert!(matches!(store.changed(Kind::AuthorizationPolicy, policy.clone()), Change::Refused(_)));
        assert!(store.objects().authorization_policies.values().all(|policy| policy.spec.is_err()));
        assert_eq!(store.rejected().len(), 2);
        store.changed(Kind::Pod, pod("a", 3));
        store.gone(Kind::AuthorizationPolicy, &policy);
        assert_eq!((store.rejected().len(), store.objects().authorization_policies.len()), (0, 0));
    }

    #[test]
    fn an_object_without_a_usable_name_is_complained_about_until_a_list_is_without_it() {
        let mut store = Store::default();
        for strange in [json!(null), json!(5), json!({}), json!({"metadata": {"name": "../x"}})] {
            assert!(matches!(store.changed(Kind::NetworkPolicy, strange.clone()), Change::Refused(_)), "{strange}");
        }
        assert!(!store.rejected().is_empty());
        store.list(Kind::NetworkPolicy);
        store.listed(Kind::NetworkPolicy, "5");
        assert_eq!(store.rejected(), []);
    }
}
