//! ADD: the pod starts only once it is captured and served, or is none of the mesh's.

use mesh_api::link::cni::{Attachment, ToWatcher};
use mesh_net::netns::Netns;

use crate::ask;
use crate::env::{self, Container, Lookup};
use crate::error::{CniError, Code};
use crate::netconf::Netconf;
use crate::result::PrevResult;

/// Answers with prevResult in the version asked for.
pub fn run(lookup: Lookup<'_>, conf: Netconf) -> Result<Vec<u8>, CniError> {
    let container = Container::read(lookup)?;
    container.pod.require_named()?;
    let path = env::netns(lookup)?;
    let result = PrevResult::read(conf.prev_result.clone(), conf.version)?;
    if !conf.exclude_namespaces.contains(&container.pod.namespace) {
        let netns = open(&path)?;
        let attachment = attachment(&container, &result);
        ask::or_decide(&conf, &container, &ToWatcher::Add(attachment.clone()), &netns, Some(&attachment))?;
    }
    Ok(result.into_json(conf.version))
}

/// The netns as a descriptor: pod-watcher needs no mount of the runtime's directory to use it.
pub fn open(path: &std::path::Path) -> Result<std::os::fd::OwnedFd, CniError> {
    Netns::open(path).map(Netns::into_fd).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        CniError::new(
            Code::Environment,
            format!("CNI_NETNS {}: {error}{cause}", path.display()),
            "the runtime passes the path of the container's network namespace",
        )
    })
}

/// What the link says about this container.
pub fn attachment(container: &Container, result: &PrevResult) -> Attachment {
    Attachment {
        container_id: container.id.clone(),
        ifname: container.ifname.clone(),
        pod_namespace: container.pod.namespace.clone(),
        pod_name: container.pod.name.clone(),
        pod_uid: container.pod.uid.clone(),
        addresses: result.addresses().to_vec(),
    }
}
