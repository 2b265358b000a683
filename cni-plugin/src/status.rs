//! STATUS: could an ADD be taken? Answers for this plugin's own configuration only: a failing STATUS takes the whole node out of
//! service, and pods of namespaces outside the mesh start without pod-watcher.

use crate::error::CniError;
use crate::netconf::Netconf;
use crate::version::SpecVersion;

/// Prints nothing: a configuration that reached this point is usable.
pub fn run(conf: Netconf) -> Result<Vec<u8>, CniError> {
    conf.version.require(SpecVersion::V1_1_0, "STATUS")?;
    Ok(Vec::new())
}
