//! The namespace that is being compiled, and what can be seen from there.

use std::collections::BTreeMap;

use mesh_api::manifests::{Key, Objects};

use super::CompileConfig;

/// A namespace among all objects.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) objects: &'a Objects,
    pub(super) config: &'a CompileConfig,
    pub(super) namespace: &'a str,
}

impl<'a> Place<'a> {
    /// What is here.
    pub(super) fn own<T>(&self, all: &'a BTreeMap<Key, T>) -> impl Iterator<Item = (&'a Key, &'a T)> + use<'a, T> {
        of(all, self.namespace)
    }

    /// What is in the root namespace, seen from another one: it may be meant for this one too.
    pub(super) fn of_root<T>(&self, all: &'a BTreeMap<Key, T>) -> impl Iterator<Item = (&'a Key, &'a T)> + use<'a, T> {
        let is_root = self.is_root();
        of(all, &self.config.root_namespace).filter(move |_| !is_root)
    }

    /// Whether policies of this namespace may apply to the whole mesh.
    pub(super) fn is_root(&self) -> bool {
        self.namespace == self.config.root_namespace
    }
}

/// What is in a namespace: keys of one namespace stand beside each other.
fn of<'a, T>(all: &'a BTreeMap<Key, T>, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a T)> + use<'a, T> {
    all.range((namespace.to_owned(), String::new())..).take_while(move |((of, _), _)| of == namespace)
}
