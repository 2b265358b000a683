//! GC: attachments that are no longer valid are let go.

use std::time::Instant;

use mesh_api::link::cni::ToWatcher;

use crate::ask;
use crate::error::CniError;
use crate::netconf::Netconf;
use crate::version::SpecVersion;

/// Prints nothing. With pod-watcher down there is nothing to do: on its return it finds gone pods by itself.
pub fn run(conf: Netconf) -> Result<Vec<u8>, CniError> {
    conf.version.require(SpecVersion::V1_1_0, "GC")?;
    // A missing key must remove nothing: cnitool sends none when it knows of no attachments at all.
    if let Some(valid) = conf.valid_attachments {
        let _ = ask::once(&conf.socket, &ToWatcher::Gc { valid }, None, Instant::now() + conf.timeout);
    }
    Ok(Vec::new())
}
