//! DEL: a container must always be able to go away. Nothing makes it fail, whatever it is asked with: what cannot be read is done without,
//! and with pod-watcher down a marker is left.
//!
//! CNI 1.1 DEL: "Plugins should generally complete a DEL action without error even if some resources are missing."

use std::time::{Duration, Instant};

use mesh_api::link::cni::{Attachment, FromWatcher, ToWatcher};
use mesh_api::link::state_dir::MarkedVerb;

use crate::env::{Container, Lookup};
use crate::netconf::Netconf;
use crate::result::PrevResult;
use crate::{ask, standing};

/// pod-watcher answers a DEL as soon as it has noted it; a node that shuts down must not wait longer for each pod.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints nothing.
pub fn run(lookup: Lookup<'_>, stdin: &[u8]) -> Vec<u8> {
    let conf = Netconf::lenient(stdin);
    // Without the container's id there is nothing to say: pod-watcher finds out by the netns having no process any more.
    let Some(container) = Container::lenient(lookup) else { return Vec::new() };
    if conf.exclude_namespaces.contains(&container.pod.namespace) {
        return Vec::new();
    }
    // prevResult is there only if the runtime kept it, and a DEL does not depend on it.
    let addresses = PrevResult::read(conf.prev_result.clone(), conf.version).map(|result| result.addresses().to_vec());
    let attachment = Attachment {
        container_id: container.id,
        ifname: container.ifname,
        pod_namespace: container.pod.namespace,
        pod_name: container.pod.name,
        pod_uid: container.pod.uid,
        addresses: addresses.unwrap_or_default(),
    };
    let until = Instant::now() + conf.timeout.min(PATIENCE);
    match ask::once(&conf.socket, &ToWatcher::Del(attachment.clone()), None, until) {
        // It stays pod-watcher's business: it has been told.
        Ok(FromWatcher::Done { .. } | FromWatcher::Failed(_)) => {}
        Ok(FromWatcher::Hello(_)) | Err(_) => {
            // Without the marker pod-watcher still finds out, by the netns having no process any more.
            let _ = standing::mark(&conf.state_dir, MarkedVerb::Del, &attachment);
        }
    }
    Vec::new()
}
