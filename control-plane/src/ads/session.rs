//! One client's side of delta ADS as a pure state machine: requests in, answers out, no IO.
//!
//! Order is the point. A workload that lists a policy must find the policy at the client, and one that was in force for all is in force
//! until those whom it is left to list it. So one round of answers is: policies that are new or changed, then addresses, then policies
//! that are gone, or have become those of whoever lists them. While any answer of a round is not acknowledged nothing more is
//! sent: the next round starts from whatever is newest then, so a slow client skips what lies between instead of queueing it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{Answer, is_listed_only};

use crate::metrics::labels::ResourceType;
use crate::snapshot::Snapshot;
use crate::table::{Difference, Table};

/// More names than a node could ever ask for by name; a client that sends more is broken.
const MOST_NAMES: usize = 100_000;
/// Longer than any name of ours: those of Kubernetes have 253 characters at most, and a name here is made of a few of them.
const LONGEST_NAME: usize = 2_000;
/// What the names that a client asks for may take, in bytes: several times what as many of ours as there may be do.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// What a request meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It asked for (more or fewer) resources of a type.
    Subscribed,
    /// It acknowledged an answer.
    Acked(ResourceType),
    /// It refused an answer; the good part of it is applied there.
    Refused {
        /// Which type.
        of: ResourceType,
        /// What the client said, clipped.
        message: String,
    },
    /// It answered something that we did not send, or that is done.
    Stale,
}

/// A request that ends the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// A type that we do not serve.
    #[error("type {0:?} is not served here")]
    Type(String),
    /// Too many names.
    #[error("more than {MOST_NAMES} names are subscribed to")]
    Names,
    /// Too many to be answered at once.
    #[error("{MOST_NAMES} more names are asked for or given up than there are")]
    Asked,
    /// Too long all together.
    #[error("the names that are asked for have more than {MOST_BYTES} bytes")]
    Bytes,
    /// On-demand: by addresses instead of names, or nothing until something is asked for.
    #[error("on-demand subscriptions are not served: subscribe to everything (*), or to names of resources")]
    OnDemand,
    /// A name that is none.
    #[error("a name is longer than {LONGEST_NAME} bytes")]
    LongName,
}

/// One client.
#[derive(Debug, Default)]
pub struct Session {
    policies: Subscription,
    addresses: Subscription,
    /// Answers not yet acknowledged, by nonce.
    waiting: BTreeMap<String, ResourceType>,
    nonces: u64,
}

/// What a client wants and has of one type.
#[derive(Debug, Default)]
struct Subscription {
    /// Whether it has asked at all.
    open: bool,
    /// Whether it has had an answer; the first is sent even if it is empty, since clients wait for it.
    answered: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// Names asked for just now: answered even if the client has them, or told to be missing.
    asked: BTreeSet<String>,
    held: Held,
}

/// What a client has, as far as we know.
#[derive(Debug)]
enum Held {
    /// By name and version: what it brought along.
    Brought(BTreeMap<String, String>),
    /// Whatever it wants of what was served at a time. Shared with everybody who has it, so a client costs the changes and no copy of the
    /// mesh.
    Served(Table),
}

impl Default for Held {
    fn default() -> Self {
        Self::Brought(BTreeMap::new())
    }
}

impl Session {
    /// Takes a request.
    pub fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Meaning, BadRequest> {
        let DeltaDiscoveryRequest {
            node: _,
            type_url,
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: initial,
            response_nonce: nonce,
            error_detail,
        } = request;
        let Some(of) = ResourceType::of(&type_url) else {
            return Err(BadRequest::Type(type_url.chars().take(120).collect()));
        };
        let subscription = match of {
            ResourceType::Address => &mut self.addresses,
            ResourceType::Authorization => &mut self.policies,
        };
        let all = |names: &[String]| names.iter().any(|name| name == "*");
        let by_address = subscribe.iter().any(|name| of == ResourceType::Address && is_network_address(name));
        if by_address || (all(&subscribe) && all(&unsubscribe)) {
            return Err(BadRequest::OnDemand);
        }
        let first = !subscription.open;
        if first || !subscribe.is_empty() || !unsubscribe.is_empty() {
            subscription.change(first, subscribe, unsubscribe, initial)?;
        }
        if nonce.is_empty() {
            return Ok(Meaning::Subscribed);
        }
        if self.waiting.get(&nonce) != Some(&of) {
            // On a new stream a client may still carry the last nonce of the one before.
            return Ok(if first { Meaning::Subscribed } else { Meaning::Stale });
        }
        self.waiting.remove(&nonce);
        Ok(match error_detail {
            None => Meaning::Acked(of),
            Some(status) => Meaning::Refused { of, message: status.message.chars().take(500).collect() },
        })
    }

    /// Whether an answer is not yet acknowledged: no further round may start.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the client has asked for addresses and not (yet) for policies: its first round is better held a moment.
    pub fn lacks_policies(&self) -> bool {
        self.addresses.open && !self.policies.open
    }

    /// The next round: what brings the client from what it has to the snapshot, in the order in which it must be sent. Empty if
    /// there is nothing to say.
    pub fn round(&mut self, snapshot: &Snapshot) -> Vec<(ResourceType, Answer)> {
        let Due { now: policies, narrower, gone } = self.policies.difference(&snapshot.policies, narrows);
        let Due { now: addresses, gone: removed, .. } = self.addresses.difference(&snapshot.addresses, |_, _| false);
        let mut round = Vec::new();
        if !policies.is_empty() || self.policies.open && !self.policies.answered {
            self.policies.answered = true;
            round.push(self.response(ResourceType::Authorization, policies, Vec::new(), snapshot.generation));
        }
        if !addresses.is_empty() || !removed.is_empty() || self.addresses.open && !self.addresses.answered {
            self.addresses.answered = true;
            round.push(self.response(ResourceType::Address, addresses, removed, snapshot.generation));
        }
        if !narrower.is_empty() || !gone.is_empty() {
            round.push(self.response(ResourceType::Authorization, narrower, gone, snapshot.generation));
        }
        round
    }

    fn response(
        &mut self,
        of: ResourceType,
        resources: Vec<Arc<SavedResource>>,
        removed_resources: Vec<String>,
        generation: u64,
    ) -> (ResourceType, Answer) {
        self.nonces += 1;
        let nonce = format!("{generation}-{}", self.nonces);
        self.waiting.insert(nonce.clone(), of);
        let head = DeltaDiscoveryResponse {
            system_version_info: generation.to_string(),
            resources: Vec::new(),
            type_url: of.type_url().to_owned(),
            nonce,
            removed_resources,
        };
        (of, Answer { head, resources })
    }
}

/// Istio's key of an address, `NETWORK/ADDRESS`, where the network may be empty.
fn is_network_address(name: &str) -> bool {
    name.split_once('/').is_some_and(|(_, address)| address.parse::<std::net::IpAddr>().is_ok())
}

/// What a client is to be told of one type.
#[derive(Debug, Default)]
struct Due {
    now: Vec<Arc<SavedResource>>,
    /// What it has until the addresses have changed, and gets in its new form then.
    narrower: Vec<Arc<SavedResource>>,
    gone: Vec<String>,
}

/// Whether a policy is in force for fewer by its change alone. A version that says nothing of that may be one for all.
fn narrows(before: &str, now: &str) -> bool {
    is_listed_only(now) && !is_listed_only(before)
}

impl Subscription {
    fn change(
        &mut self,
        first: bool,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        initial: BTreeMap<String, String>,
    ) -> Result<(), BadRequest> {
        if subscribe.iter().chain(&unsubscribe).chain(initial.keys()).any(|name| name.len() > LONGEST_NAME) {
            return Err(BadRequest::LongName);
        }
        if first {
            self.open = true;
            // Envoy's xDS: the first request of a type with an empty list means everything.
            self.wildcard = subscribe.is_empty();
            self.held = Held::Brought(initial);
        }
        for name in subscribe {
            if name == "*" {
                self.want_all();
            } else {
                self.asked.insert(name.clone());
                self.names.insert(name);
            }
        }
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else {
                self.names.remove(&name);
                // Whoever wants everything wants it again: the client has dropped it (xDS, "Unsubscribing From Resources").
                self.asked.insert(name);
            }
        }
        if !self.wildcard {
            self.asked.retain(|name| self.names.contains(name));
        }
        let brought = match &mut self.held {
            Held::Brought(held) => {
                // Unsubscribed names are dropped by the client itself: it is not told that they are gone.
                held.retain(|name, _| self.wildcard || self.names.contains(name));
                held.len()
            }
            Held::Served(_) => 0,
        };
        if self.names.len() > MOST_NAMES || brought > 10 * MOST_NAMES {
            return Err(BadRequest::Names);
        }
        // It may give up all that it has before it takes the next answer, and ask for as much as it ever may.
        let has = match &self.held {
            Held::Brought(held) => held.len(),
            Held::Served(table) => table.len(),
        };
        if self.asked.len() > MOST_NAMES + has {
            return Err(BadRequest::Asked);
        }
        if self.names.iter().chain(&self.asked).map(String::len).sum::<usize>() > MOST_BYTES {
            return Err(BadRequest::Bytes);
        }
        Ok(())
    }

    /// Everything from now on; until now it had what it asked for by name.
    fn want_all(&mut self) {
        if let (false, Held::Served(table)) = (self.wildcard, &self.held) {
            let had = |name: &String| self.names.contains(name) && !self.asked.contains(name);
            let had = table.iter().filter(|resource| had(&resource.name));
            self.held = Held::Brought(had.map(|one| (one.name.clone(), one.version.clone())).collect());
        }
        self.wildcard = true;
    }

    /// From what the client has to the table; it is taken to have that from now on. `later` says of a resource that it has, by the
    /// versions before and now, whether it is to keep what it has for a while.
    fn difference(&mut self, table: &Table, later: fn(&str, &str) -> bool) -> Due {
        if !self.open {
            return Due::default();
        }
        let mut asked = std::mem::take(&mut self.asked);
        let wanted = |name: &str| self.wildcard || self.names.contains(name);
        let mut later_on = BTreeSet::new();
        let (send, mut gone): (Vec<&Arc<SavedResource>>, Vec<String>) = match std::mem::take(&mut self.held) {
            Held::Served(last) => {
                let Difference { changed, gone } = table.since(&last);
                let changed = changed.into_iter().map(|(before, one)| {
                    if before.is_some_and(|before| later(&before.version, &one.version)) {
                        later_on.insert(one.name.clone());
                    }
                    one
                });
                let mut send: BTreeMap<&str, &Arc<SavedResource>> = BTreeMap::new();
                send.extend(changed.filter(|one| wanted(&one.name)).map(|one| (one.name.as_str(), one)));
                if !asked.is_empty() {
                    let again = table.iter().filter(|one| asked.contains(&one.name));
                    send.extend(again.map(|one| (one.name.as_str(), one)));
                }
                let gone = gone.into_iter().filter(|name| wanted(name)).collect();
                (send.into_values().collect(), gone)
            }
            // All of it once, whatever the client brought: those that are met are not gone.
            Held::Brought(mut held) => {
                let is_new = |one: &&Arc<SavedResource>| {
                    let before = held.remove(&one.name);
                    let same = before.as_ref().is_some_and(|version| *version == one.version);
                    if before.is_some_and(|before| later(&before, &one.version)) {
                        later_on.insert(one.name.clone());
                    }
                    wanted(&one.name) && (!same || asked.contains(&one.name))
                };
                let send = table.iter().filter(is_new).collect();
                (send, held.into_keys().collect())
            }
        };
        // What it asks for it may not have any more.
        later_on.retain(|name| !asked.contains(name));
        // Asked for and not there.
        let told: BTreeSet<&str> =
            send.iter().map(|one| one.name.as_str()).chain(gone.iter().map(String::as_str)).collect();
        asked.retain(|name| !told.contains(name.as_str()));
        gone.extend(asked);
        let (narrower, now) = send.into_iter().cloned().partition(|one| later_on.contains(&one.name));
        self.held = Held::Served(table.clone());
        Due { now, narrower, gone }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
