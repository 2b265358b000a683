//! `node-proxy own-state`: the directory of the last good configuration is a hostPath, which kubelet makes as root's; the worker that
//! writes there is nobody in particular and may not change owners, and neither may the keeper.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use anyhow::Context as _;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

/// Flags of `node-proxy own-state`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory; made if it is not there.
    #[arg(long, env = "CULVERT_STATE_DIR", default_value = "/var/lib/culvert/node-proxy")]
    state_dir: PathBuf,
    /// Its owner from now on, and the number of its group.
    #[arg(long, env = "CULVERT_WORKER_UID", default_value_t = 65532)]
    uid: u32,
}

/// Makes the directory the worker's alone. What it holds is left as it is: only the worker writes there.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (dir, uid) = (&args.state_dir, args.uid);
    match DirBuilder::new().mode(0o700).recursive(true).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", dir.display()));
        }
        _ => {}
    }
    // A link would lead out of the place that was given.
    let found = std::fs::symlink_metadata(dir).with_context(|| format!("look at {}", dir.display()))?;
    anyhow::ensure!(found.is_dir(), "{} is no directory", dir.display());
    if found.uid() == uid && found.mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    // The mode while it still is ours: afterwards that would need another capability.
    if found.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))
            .with_context(|| format!("set the mode of {} to 0700", dir.display()))?;
    }
    chownat(CWD, dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)), AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("give {} to uid {uid} (needs root with CAP_CHOWN)", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_the_workers_alone_and_that_can_be_done_twice() {
        let place = tempfile::tempdir().expect("a directory");
        let dir = place.path().join("a/node-proxy");
        let args = Args { state_dir: dir.clone(), uid: 65532 };
        for _ in 0..2 {
            run(&args).expect("done");
            let found = std::fs::metadata(&dir).expect("there");
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (65532, 65532, 0o700));
            std::fs::write(dir.join("kept"), "x").expect("written");
        }
        assert!(dir.join("kept").exists());
    }

    #[test]
    fn a_link_or_a_file_in_its_place_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let (link, file) = (place.path().join("link"), place.path().join("file"));
        std::os::unix::fs::symlink(place.path(), &link).expect("linked");
        std::fs::write(&file, "x").expect("written");
        for wrong in [link, file] {
            let error = run(&Args { state_dir: wrong.clone(), uid: 65532 }).expect_err("refused");
            assert!(format!("{error:#}").contains(&wrong.display().to_string()), "{error:#}");
        }
    }
}
