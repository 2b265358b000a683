//! Deciding while pod-watcher is down: what pod-watcher last wrote about a namespace, and markers for it to work off.
//!
//! Never decides anything for an enrolled or unknown namespace: those wait.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use mesh_api::link::cni::Attachment;
use mesh_api::link::state_dir::{MAX_FILE, MarkedVerb, Marker, Namespaces, Standing, VERSION};

/// What the namespace is, as far as a trustworthy file says; `None` is unknown.
pub fn of(state_dir: &Path, namespace: &str) -> Option<Standing> {
    let mut file = File::open(Namespaces::path(state_dir)).ok()?;
    let metadata = file.metadata().ok()?;
    // The file decides who passes: only root may have written it.
    let trusted = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !trusted || metadata.len() > MAX_FILE as u64 {
        return None;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Namespaces::decode(&bytes).ok()?.namespaces.get(namespace).copied()
}

/// Leaves a marker, replacing the one this container may have. Written aside and renamed, so that pod-watcher never reads half.
pub fn mark(state_dir: &Path, verb: MarkedVerb, attachment: &Attachment) -> std::io::Result<()> {
    let dir = Marker::dir(state_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let name = Marker::file_name(attachment);
    // Not `.json`: pod-watcher skips what is not a finished marker.
    let aside = dir.join(format!("{name}.{}.tmp", std::process::id()));
    let marker = Marker { version: VERSION, verb, attachment: attachment.clone() };
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&mesh_api::link::encode(&marker))?;
        std::fs::rename(&aside, dir.join(&name))
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&aside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: "cart".to_owned(),
            pod_uid: String::new(),
            addresses: Vec::new(),
        }
    }

    #[test]
    fn only_a_file_that_nobody_else_can_write_is_believed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(of(dir.path(), "tools"), None);
        let path = Namespaces::path(dir.path());
        std::fs::write(&path, br#"{"version":1,"namespaces":{"tools":"plain"}}"#).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        assert_eq!(of(dir.path(), "tools"), Some(Standing::Plain));
        assert_eq!(of(dir.path(), "shop"), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).expect("mode");
        assert_eq!(of(dir.path(), "tools"), None);
    }

    #[test]
    fn a_del_replaces_the_marker_of_its_add() {
        let dir = tempfile::tempdir().expect("temporary directory");
        mark(dir.path(), MarkedVerb::Add, &attachment()).expect("first");
        mark(dir.path(), MarkedVerb::Del, &attachment()).expect("second");
        let names: Vec<_> =
            std::fs::read_dir(Marker::dir(dir.path())).expect("listed").map(|e| e.expect("entry").path()).collect();
        assert_eq!(names.len(), 1);
        let marker = Marker::decode(&std::fs::read(&names[0]).expect("read")).expect("decodes");
        assert_eq!(marker.verb, MarkedVerb::Del);
    }
}
