//! Conversions: what goes out comes back, and what is not understood is refused and never widens.

mod refusals;
mod round_trip;

use std::net::IpAddr;
use std::time::Duration;

use mesh_model::policy::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch, address_block,
};
use mesh_model::{
    AppProtocol, Endpoint, External, Health, Hints, Identity, IpFamilies, Near, NetworkPolicy, PodName, PodUid,
    Readiness, Service, ServiceKey, ServicePort, Telemetry, TrustDomain, Tunnel, Workload, WorkloadUid,
};
use proptest::prelude::*;
use prost::Message;

use super::saved::SavedResource;
use super::*;
