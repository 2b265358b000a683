//! The resources of one type as they are served, by name, in shards of a namespace each. A shard is shared by all that hold it and never
//! changed: two tables are compared by comparing which shards they have, and only what lies in different ones is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::xds::saved::SavedResource;

/// Resources of a namespace, by name.
type Shard = BTreeMap<String, Arc<SavedResource>>;

static NONE: Shard = Shard::new();

/// Resources of one type. A name is in one namespace only.
#[derive(Clone, Debug, Default)]
pub struct Table {
    shards: BTreeMap<Arc<str>, Arc<Shard>>,
}

/// What brings somebody from one table to another.
#[derive(Debug, Default)]
pub struct Difference<'a, 'b> {
    /// New, or of another version, which is the first of the two.
    pub changed: Vec<(Option<&'b SavedResource>, &'a Arc<SavedResource>)>,
    /// Names that are no more.
    pub gone: Vec<String>,
}

impl Table {
    /// Puts a namespace's resources in place of those there are. Resources that `last` has as well are shared with it, and so is the
    /// shard if nothing differs.
    pub fn put(&mut self, namespace: &str, resources: impl Iterator<Item = SavedResource>, last: &Self) {
        let before = last.shards.get_key_value(namespace);
        let mut differs = false;
        let entries = resources.map(|resource| {
            let same = before.and_then(|(_, shard)| shard.get_key_value(&resource.name));
            match same.filter(|(_, same)| same.version == resource.version) {
                Some((name, same)) => (name.clone(), same.clone()),
                None => {
                    differs = true;
                    (resource.name.clone(), Arc::new(resource))
                }
            }
        });
        let shard: Shard = entries.collect();
        match before {
            _ if shard.is_empty() => drop(self.shards.remove(namespace)),
            Some((namespace, same)) if !differs && same.len() == shard.len() => {
                self.shards.insert(namespace.clone(), same.clone());
            }
            _ => drop(self.shards.insert(namespace.into(), Arc::new(shard))),
        }
    }

    /// Whether both hold the same.
    pub fn same_as(&self, other: &Self) -> bool {
        self.shards.len() == other.shards.len()
            && self.shards.iter().zip(&other.shards).all(|((of, one), (namespace, another))| {
                of == namespace && (Arc::ptr_eq(one, another) || same(one, another))
            })
    }

    /// From `last` to this one.
    pub fn since<'a, 'b>(&'a self, last: &'b Self) -> Difference<'a, 'b> {
        let mut difference = Difference::default();
        for (namespace, shard) in &self.shards {
            match last.shards.get(namespace) {
                Some(before) if Arc::ptr_eq(shard, before) => {}
                before => difference.add(shard, before.map_or(&NONE, |before| before)),
            }
        }
        for (_, before) in last.shards.iter().filter(|(namespace, _)| !self.shards.contains_key(*namespace)) {
            difference.add(&NONE, before);
        }
        difference
    }

    /// All of them, those of a namespace in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<SavedResource>> {
        self.shards.values().flat_map(|shard| shard.values())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.values().map(|shard| shard.len()).sum()
    }
}

impl<'a, 'b> Difference<'a, 'b> {
    fn add(&mut self, now: &'a Shard, before: &'b Shard) {
        let changed = now.iter().map(|(name, resource)| (before.get(name), resource)).filter(|(last, resource)| {
            last.is_none_or(|last| !Arc::ptr_eq(last, resource) && last.version != resource.version)
        });
        self.changed.extend(changed.map(|(last, resource)| (last.map(|last| &**last), resource)));
        self.gone.extend(before.keys().filter(|name| !now.contains_key(*name)).cloned());
    }
}

fn same(one: &Shard, other: &Shard) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((name, a), (other, b))| name == other && a.version == b.version)
}
