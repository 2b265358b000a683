//! CHECK: is the pod still captured and served, as far as it should be?

use mesh_api::link::cni::ToWatcher;

use crate::env::{self, Container, Lookup};
use crate::error::CniError;
use crate::netconf::Netconf;
use crate::result::PrevResult;
use crate::version::SpecVersion;
use crate::{add, ask};

/// Prints nothing when all is well.
pub fn run(lookup: Lookup<'_>, conf: Netconf) -> Result<Vec<u8>, CniError> {
    conf.version.require(SpecVersion::V0_4_0, "CHECK")?;
    let container = Container::read(lookup)?;
    container.pod.require_named()?;
    let path = env::netns(lookup)?;
    // CNI 1.1 CHECK: prevResult is the final result of the ADD, and is required.
    let result = PrevResult::read(conf.prev_result.clone(), conf.version)?;
    if !conf.exclude_namespaces.contains(&container.pod.namespace) {
        let netns = add::open(&path)?;
        let request = ToWatcher::Check(add::attachment(&container, &result));
        ask::or_decide(&conf, &container, &request, &netns, None)?;
    }
    Ok(Vec::new())
}
