//! Which namespaces were changed since somebody looked, so that only those need to be looked at again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kind::{Kind, ObjectRef};

/// When objects of each kind were changed last in each namespace.
///
/// A stamp is given once in a process: whoever remembers one and meets it again knows that nothing was changed there in between, also
/// when the objects were read anew (which gives every namespace new ones).
#[derive(Clone, Debug, Default)]
pub struct Stamps(BTreeMap<String, OfNamespace>);

#[derive(Clone, Debug, Default)]
struct OfNamespace {
    /// Of whatever was changed last, the status of a policy included.
    newest: u64,
    /// Of what objects say.
    kinds: BTreeMap<Kind, u64>,
}

impl Stamps {
    /// The namespaces in which there is something, with the newest stamp of each. A Namespace is in the one that it is; Nodes are
    /// in the one without a name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(namespace, stamps)| (namespace.as_str(), stamps.newest))
    }

    /// The stamp of what the objects of a kind say in a namespace; 0 if nothing is known of it.
    pub fn of(&self, namespace: &str, kind: Kind) -> u64 {
        self.0.get(namespace).and_then(|stamps| stamps.kinds.get(&kind)).copied().unwrap_or_default()
    }

    /// The object says something else now, or is gone.
    pub(super) fn touch(&mut self, object: &ObjectRef) {
        let stamp = self.stamp(object);
        stamp.kinds.insert(object.kind, stamp.newest);
    }

    /// The object says the same, and something else about it changed.
    pub(super) fn brush(&mut self, object: &ObjectRef) {
        self.stamp(object);
    }

    fn stamp(&mut self, object: &ObjectRef) -> &mut OfNamespace {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let namespace = if object.kind == Kind::Namespace { &object.name } else { &object.namespace };
        let stamps = self.0.entry(namespace.clone()).or_default();
        stamps.newest = NEXT.fetch_add(1, Ordering::Relaxed);
        stamps
    }

    /// Nothing is left there.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.0.remove(namespace);
    }
}

/// They say when, not what: objects that are the same are equal whenever they were read.
impl PartialEq for Stamps {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Store;
    use super::*;

    fn object(name: &str, version: u64, label: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "labels": {"app": label}},
            "spec": {"containers": []}})
    }

    #[test]
    fn a_namespace_is_touched_by_what_says_something_else_and_by_nothing_more() {
        let mut store = Store::default();
        let mut last = 0;
        let mut touched = |store: &Store| {
            let now =
                store.objects().stamps().namespaces().find(|(name, _)| *name == "shop").map_or(0, |(_, stamp)| stamp);
            std::mem::replace(&mut last, now) != now
        };
        assert!(!touched(&store));
        store.changed(Kind::Pod, object("a", 1, "x"));
        assert!(touched(&store));
        store.changed(Kind::Pod, object("a", 2, "x"));
        assert!(!touched(&store), "only its version differs");
        store.changed(Kind::Pod, object("a", 3, "y"));
        assert!(touched(&store));
        store.changed(Kind::Namespace, json!({"metadata": {"name": "shop", "resourceVersion": "4"}}));
        assert!(touched(&store));
        store.changed(Kind::Namespace, json!({"metadata": {"name": "other", "resourceVersion": "5"}}));
        store.changed(Kind::Node, json!({"metadata": {"name": "n1", "resourceVersion": "6"}}));
        assert!(!touched(&store));
        store.gone(Kind::Pod, &object("b", 7, "y"));
        assert!(!touched(&store), "it was not there");
        store.gone(Kind::Pod, &object("a", 8, "y"));
        assert!(touched(&store));
        // A policy's status is ours to write, by its version.
        let policy = |version: &str, spec: Value| json!({"metadata": {"name": "p", "namespace": "shop", "resourceVersion": version}, "spec": spec});
        store.changed(Kind::AuthorizationPolicy, policy("9", json!({})));
        assert!(touched(&store));
        let said = store.objects().stamps().of("shop", Kind::AuthorizationPolicy);
        store.changed(Kind::AuthorizationPolicy, policy("10", json!({})));
        assert!(touched(&store), "its status may have changed");
        assert_eq!(store.objects().stamps().of("shop", Kind::AuthorizationPolicy), said, "it says the same");
        store.changed(Kind::AuthorizationPolicy, policy("11", json!({"acton": "DENY"})));
        assert!(touched(&store), "the last good one stays, and that is told");
        store.list(Kind::AuthorizationPolicy);
        store.listed(Kind::AuthorizationPolicy, "12");
        assert!(touched(&store), "gone with the list");
        store.changed(Kind::AuthorizationPolicy, policy("13", json!({"acton": "DENY"})));
        assert!(touched(&store), "one that refuses stands there");
        for (kind, name) in [(Kind::AuthorizationPolicy, "p"), (Kind::Namespace, "shop")] {
            assert!(store.objects().stamps().of("shop", Kind::Pod) > 0);
            store.gone(kind, &json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "14"}}));
        }
        assert_eq!(store.objects().stamps().of("shop", Kind::Pod), 0, "nothing is left of the namespace");
    }
}
