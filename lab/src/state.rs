//! What the lab leaves on the machine, written down before it is made: one directory per lab under `/run/culvert-lab`.
//!
//! Everything else a lab makes (network devices, mounts, processes) lives in namespaces that end with the pid 1 of each
//! node, so the records needed to take a lab down are few: the pid 1s, the cgroups, this directory. `down` uses nothing
//! but these records, which is why it works after the lab was killed at any point.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::proc::Pid;
use crate::{cgroup, wait};

/// Where labs are recorded.
pub const ROOT: &str = "/run/culvert-lab";
/// Where the disks of nodes are that have one ([`crate::Host`]): not in `/run`, which is memory and forbids programs on many machines.
const DISKS: &str = "/var/lib/culvert-lab";

/// The directory of one lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir(PathBuf);

/// Who runs a lab: while that process lives (and has not let the lab go), nobody else takes it down.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Owner {
    process: Pid,
    kept: bool,
}

impl Dir {
    /// The directory of the lab `name`, existing or not.
    pub fn of(name: &str) -> Result<Dir> {
        let fine = !name.is_empty()
            && name.len() <= 40
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        ensure!(fine, "lab name {name:?}: use 1 to 40 letters, digits, '-' and '_'");
        Ok(Dir(Path::new(ROOT).join(name)))
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        self.0.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    /// A path inside.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Where the lab's disks are, those that are kept apart from the directory.
    pub(crate) fn disks(&self) -> PathBuf {
        Path::new(DISKS).join(self.name())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the lab is recorded.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Makes the directory and takes ownership; fails when a lab of this name is there.
    pub(crate) fn create(&self) -> Result<()> {
        let _making = crate::interrupt::making()?;
        // Whoever takes the last lab down removes the root too, so it may be gone again before it is opened.
        let lock = wait::until(&format!("{ROOT} to be made"), Duration::from_secs(5), || {
            fs::create_dir_all(ROOT).ok()?;
            lock_root().ok()?
        })?;
        fs::create_dir(&self.0).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => anyhow::anyhow!(
                "a lab named {} is recorded in {}: take it down first (culvert-lab down {0})",
                self.name(),
                self.0.display()
            ),
            _ => anyhow::anyhow!("make {}: {error}", self.0.display()),
        })?;
        self.set_owner(false)?;
        drop(lock);
        for sub in ["nodes", "pods", "manifests", "logs", "init", "processes", "services"] {
            make_dir(&self.join(sub))?;
        }
        Ok(())
    }

    /// Records the calling process as the one that runs the lab; `kept` lets others take it down at any time.
    pub(crate) fn set_owner(&self, kept: bool) -> Result<()> {
        self.write("owner.json", &Owner { process: Pid::current()?, kept })
    }

    /// The living process that runs this lab, if it is not the caller and has not let go.
    pub fn held_by(&self) -> Option<u32> {
        let owner: Owner = self.read("owner.json").ok()?;
        (!owner.kept && owner.process.pid != std::process::id() && owner.process.is_alive())
            .then_some(owner.process.pid)
    }

    /// Writes a record by temporary file and rename.
    pub(crate) fn write(&self, name: impl AsRef<Path>, value: &impl Serialize) -> Result<()> {
        write_atomic(&self.join(name), serde_json::to_string_pretty(value)?.as_bytes())
    }

    /// Reads a record.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: impl AsRef<Path>) -> Result<T> {
        let path = self.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Every record in a folder.
    pub(crate) fn read_all<T: DeserializeOwned>(&self, folder: &str) -> Vec<T> {
        let Ok(entries) = fs::read_dir(self.join(folder)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        names.sort();
        names.iter().filter_map(|path| serde_json::from_str(&fs::read_to_string(path).ok()?).ok()).collect()
    }

    /// Takes everything recorded away. Can be repeated, and can be called while the lab is still being made: the directory
    /// is moved aside first, so a half-started pid 1 cannot record itself any more and ends.
    pub fn down(&self) -> Result<()> {
        // Without the root nothing is recorded; what somebody else makes from now on is not ours to remove.
        let Some(lock) = lock_root()? else { return Ok(()) };
        let going = Path::new(ROOT).join(format!(".going-{}", self.name()));
        if going.exists() {
            finish(&going, self.name())?;
        }
        if self.exists() {
            fs::rename(&self.0, &going).with_context(|| format!("move {} aside", self.0.display()))?;
            finish(&going, self.name())?;
        }
        // Also without a record: an older version of the lab, which sweeps what it finds, knows of no disks.
        remove_disks(self.name())?;
        let _ = fs::remove_dir(ROOT); // only when it was the last one
        drop(lock);
        Ok(())
    }
}

/// Every recorded lab, also those whose clean-up was cut short.
pub fn recorded() -> Vec<Dir> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut labs: Vec<Dir> = names
        .map(|n| n.strip_prefix(".going-").map(str::to_owned).unwrap_or(n))
        .filter_map(|n| Dir::of(&n).ok())
        .collect();
    labs.sort_by(|a, b| a.0.cmp(&b.0));
    labs.dedup();
    labs
}

/// Takes away what labs left whose process was killed; their nodes ended with it, directories and cgroups did not.
pub(crate) fn sweep() {
    for dir in recorded() {
        let owner: Result<Owner> = dir.read("owner.json");
        if owner.is_ok_and(|o| !o.kept && !o.process.is_alive())
            && let Err(error) = dir.down()
        {
            tracing::warn!(lab = dir.name(), error = format!("{error:#}"), "a dead lab could not be taken away");
        }
    }
}

/// What is left of a lab on this machine: nothing, after `down`.
pub fn leftovers(name: &str) -> Vec<String> {
    let dirs = [Path::new(ROOT).join(name), Path::new(ROOT).join(format!(".going-{name}"))];
    let mut left: Vec<String> = dirs.iter().filter(|d| d.exists()).map(|d| d.display().to_string()).collect();
    let disks = Path::new(DISKS).join(name);
    left.extend(disks.exists().then(|| disks.display().to_string()));
    left.extend(cgroup::of_lab(name).iter().map(|d| d.display().to_string()));
    left.extend(crate::pid::of_lab(name).iter().map(|pid| format!("process {pid}")));
    left
}

/// Ends the pid 1s recorded in a directory that was moved aside, waits until they are gone, removes
/// the lab's cgroups and, last, the directory: as long as it is there, `down` has something left to do.
fn finish(going: &Path, name: &str) -> Result<()> {
    let dir = Dir(going.to_owned());
    let inits: Vec<Pid> = dir.read_all("init");
    for init in &inits {
        init.signal(Signal::KILL); // the kernel ends its whole pid namespace with it
    }
    for init in inits {
        // A process of the namespace whose parent is this very lab has to be reaped here before pid 1 can end.
        wait::until_true(&format!("pid {} to end", init.pid), Duration::from_secs(10), || {
            crate::proc::reap_ended();
            !init.is_alive()
        })?;
    }
    cgroup::remove_lab(name)?;
    remove_disks(name)?;
    fs::remove_dir_all(going).with_context(|| format!("remove {}", going.display()))
}

/// Removes the disks of a lab, and their common parent when it is empty.
fn remove_disks(name: &str) -> Result<()> {
    let disks = Path::new(DISKS).join(name);
    if disks.exists() {
        fs::remove_dir_all(&disks).with_context(|| format!("remove {}", disks.display()))?;
        let _ = fs::remove_dir(DISKS); // only when it was the last one
    }
    Ok(())
}

/// One `up` or `down` at a time. The lock sits on the parent directory, so that it leaves no file behind; `None` when that is not
/// there. While it is held the directory stays: only who holds the lock removes it.
fn lock_root() -> Result<Option<fs::File>> {
    loop {
        let file = match fs::File::open(ROOT) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {ROOT}")),
        };
        flock(&file, FlockOperation::LockExclusive)?;
        let (locked, there) = (file.metadata()?, fs::metadata(ROOT));
        // Removed while we waited; another may have been made since, and that one is not locked.
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
            return Ok(Some(file));
        }
    }
}

/// Makes a directory of a lab if it is not there; its parent must be, for a lab that was taken down must not come back.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file by temporary file and rename, as everything that another process watches must be.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    fs::write(&temporary, bytes).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("rename into {}", path.display()))
}
