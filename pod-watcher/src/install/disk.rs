//! Carries plans out: reads the directory of network configurations, replaces files whole, and puts the plugin's binary in place.
//!
//! A file is only replaced while it says what the plan was made for: what its owner writes meanwhile is never lost. Blocking.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::chain::PLUGIN;
use super::plan::{Files, KEPT, Plan, Step, is_live};

/// The largest configuration that is read; real ones have a few KiB.
const LARGEST: u64 = 1024 * 1024;
/// How much of a binary is looked at in one go.
const PIECE: u64 = 64 * 1024;
/// What is written before it takes a name; runtimes read no such file.
const ASIDE: &str = ".culvert-cni.tmp";
/// Plans in a row before somebody else's turn: an owner that writes in a loop must not keep us here.
const ROUNDS: u32 = 8;

/// A file that is no longer what the plan was made for.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// Somebody wrote it meanwhile: another plan is needed.
    #[error("{0} was changed meanwhile")]
    Changed(String),
    /// The disk says no.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NotDone {
    let path = path.to_owned();
    move |source| NotDone::Io { what, path, source }
}

/// What became of plans.
#[derive(Debug)]
pub struct Carried {
    /// The last, with nothing left to do.
    pub plan: Plan,
    /// Steps that were needed.
    pub steps: u32,
}

/// Files that a runtime reads, and those that we kept.
pub fn read(dir: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // A name that is no text is none that we made; a runtime sorts it by its bytes, and few would.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_live(&name) || name.ends_with(KEPT) {
            files.insert(name, text(&entry.path()).map_err(|error| error.to_string()));
        }
    }
    Ok(files)
}

fn text(path: &Path) -> io::Result<String> {
    let what = |what: &str| Err(io::Error::other(what.to_owned()));
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        // Where it leads may be outside what we were given of the node, and replacing it would leave the owner's file behind.
        return what("it is a symbolic link");
    }
    if !metadata.is_file() {
        return what("it is not a file");
    }
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST { what("it is larger than 1 MiB") } else { Ok(text) }
}

/// Plans and carries out until nothing is left to do.
pub fn settle(dir: &Path, plan: impl Fn(&Files) -> Plan) -> Result<Carried, NotDone> {
    let mut steps = 0;
    let mut last = None;
    for _ in 0..ROUNDS {
        let plan = plan(&read(dir).map_err(io("read", dir))?);
        if plan.steps.is_empty() {
            return Ok(Carried { plan, steps });
        }
        for step in &plan.steps {
            match carry_out(dir, step) {
                Ok(()) => steps += 1,
                Err(changed @ NotDone::Changed(_)) => {
                    last = Some(changed);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(last.unwrap_or_else(|| NotDone::Changed(dir.display().to_string())))
}

fn carry_out(dir: &Path, step: &Step) -> Result<(), NotDone> {
    match step {
        Step::Write { name, before, text } => write(dir, name, before.as_deref(), text)?,
        Step::Rename { name, before, to } => rename(dir, name, before, to)?,
        Step::Remove { name, before } => {
            let path = dir.join(name);
            if text(&path).map_err(io("read", &path))? != *before {
                return Err(NotDone::Changed(name.clone()));
            }
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
        }
    }
    sync(dir).map_err(io("sync", dir))
}

/// Written aside, then the two change places: what stood there is looked at after it can no longer be written by name.
fn write(dir: &Path, name: &str, before: Option<&str>, wanted: &str) -> Result<(), NotDone> {
    let (path, aside) = (dir.join(name), dir.join(ASIDE));
    let mode = match before {
        Some(_) => std::fs::metadata(&path).map_err(io("look at", &path))?.mode() & 0o7777,
        None => 0o644,
    };
    put_aside(&aside, &mut wanted.as_bytes(), mode).map_err(io("write", &aside))?;
    let result = match before {
        None => match renameat_with(CWD, &aside, CWD, &path, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => Err(NotDone::Changed(name.to_owned())),
            renamed => renamed.map_err(io::Error::from).map_err(io("rename to", &path)),
        },
        Some(before) => exchange(&aside, &path).map_err(io("rename to", &path)).and_then(|()| {
            if text(&aside).is_ok_and(|stood| stood == before) {
                return Ok(());
            }
            exchange(&aside, &path).map_err(io("rename back to", &path))?;
            Err(NotDone::Changed(name.to_owned()))
        }),
    };
    let _ = std::fs::remove_file(&aside); // gone already if it took the name
    result
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Looked at after it has its new name, where its owner does not write.
fn rename(dir: &Path, name: &str, before: &str, to: &str) -> Result<(), NotDone> {
    let (from, to) = (dir.join(name), dir.join(to));
    std::fs::rename(&from, &to).map_err(io("rename", &from))?;
    if text(&to).is_ok_and(|text| text == before) {
        return Ok(());
    }
    // Unless there is a newer one by now.
    let _ = renameat_with(CWD, &to, CWD, &from, RenameFlags::NOREPLACE);
    Err(NotDone::Changed(name.to_owned()))
}

fn put_aside(aside: &Path, from: &mut impl Read, mode: u32) -> io::Result<()> {
    // Of a run that was cut off.
    let _ = std::fs::remove_file(aside);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(aside)?;
    io::copy(from, &mut file)?;
    // Not by the process's umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What the binary was when it was found to be right: it is read again only when one of these differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64, u64, i64, i64, u32);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.mode())
    }
}

/// Puts the plugin's binary into the directory that the runtime takes plugins from, unless it is there. Whether it had to be.
pub fn put_binary(from: &Path, dir: &Path, known: &mut Option<Stamp>) -> Result<bool, NotDone> {
    let path = dir.join(PLUGIN);
    let found = std::fs::symlink_metadata(&path).ok().filter(Metadata::is_file);
    let stamp = found.as_ref().map(Stamp::of);
    if stamp.is_some() && stamp == *known {
        return Ok(false);
    }
    let right =
        found.is_some_and(|found| found.mode() & 0o7777 == 0o755) && same(from, &path).map_err(io("compare", &path))?;
    if !right {
        let aside = dir.join(ASIDE);
        let mut wanted = File::open(from).map_err(io("read", from))?;
        put_aside(&aside, &mut wanted, 0o755).map_err(io("write", &aside))?;
        // One that runs goes on with the file it has.
        std::fs::rename(&aside, &path).map_err(io("rename to", &path))?;
        sync(dir).map_err(io("sync", dir))?;
    }
    *known = std::fs::symlink_metadata(&path).ok().as_ref().map(Stamp::of);
    Ok(!right)
}

/// Whether two files say the same; never more than a piece of each in memory.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut here, mut there) = (Vec::new(), Vec::new());
    loop {
        here.clear();
        there.clear();
        one.by_ref().take(PIECE).read_to_end(&mut here)?;
        other.by_ref().take(PIECE).read_to_end(&mut there)?;
        if here != there {
            return Ok(false);
        }
        if here.is_empty() {
            return Ok(true);
        }
    }
}

/// Takes it away again.
pub fn remove_binary(dir: &Path) -> Result<(), NotDone> {
    let path = dir.join(PLUGIN);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("remove", &path)(error)),
        _ => sync(dir).map_err(io("sync", dir)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::Entry;
    use super::super::plan;
    use super::*;

    const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"}]}\n";

    fn entry() -> Entry {
        Entry::new("/run/culvert/cni.sock".into(), 15, Vec::new(), "/var/lib/culvert/cni".into())
    }

    fn listed(dir: &Path) -> Vec<String> {
        let name =
            |entry: io::Result<std::fs::DirEntry>| entry.expect("entry").file_name().into_string().expect("text");
        let mut names: Vec<_> = std::fs::read_dir(dir).expect("listed").map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn in_and_out_leaves_the_file_as_it_was_with_its_mode() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, mode) in [("10-a.conflist", 0o600), ("10-b.conflist", 0o644)] {
            std::fs::write(dir.path().join(name), LIST).expect("written");
            std::fs::set_permissions(dir.path().join(name), Permissions::from_mode(mode)).expect("mode");
        }
        let path = dir.path().join("10-a.conflist");
        let mode = || std::fs::metadata(&path).expect("there").mode() & 0o777;
        std::fs::write(dir.path().join(ASIDE), "of a run that was cut off").expect("written");
        let put = settle(dir.path(), |files| plan::put(files, &entry())).expect("done");
        assert_eq!((put.steps, mode()), (1, 0o600));
        assert!(std::fs::read_to_string(&path).expect("read").contains(PLUGIN));
        let again = settle(dir.path(), |files| plan::put(files, &entry())).expect("done");
        assert_eq!(again.steps, 0);
        settle(dir.path(), plan::take_out).expect("done");
        assert_eq!((std::fs::read_to_string(&path).expect("read").as_str(), mode()), (LIST, 0o600));
        assert_eq!(listed(dir.path()), ["10-a.conflist", "10-b.conflist"]);
    }

    #[test]
    fn what_its_owner_writes_between_plan_and_step_is_not_lost() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("10-a.conflist");
        let newer = LIST.replace("bridge", "ptp");
        std::fs::write(&path, &newer).expect("written");
        let old = Some(LIST.to_owned());
        for step in [
            Step::Write { name: "10-a.conflist".to_owned(), before: old.clone(), text: "x".to_owned() },
            Step::Write { name: "10-a.conflist".to_owned(), before: None, text: "x".to_owned() },
            Step::Rename { name: "10-a.conflist".to_owned(), before: LIST.to_owned(), to: "10-b".to_owned() },
            Step::Remove { name: "10-a.conflist".to_owned(), before: LIST.to_owned() },
        ] {
            assert!(matches!(carry_out(dir.path(), &step), Err(NotDone::Changed(_))), "{step:?}");
            assert_eq!(
                (listed(dir.path()), text(&path).expect("read")),
                (vec!["10-a.conflist".to_owned()], newer.clone())
            );
        }
    }

    #[test]
    fn links_and_files_without_end_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("00-x.conflist")).expect("link");
        std::fs::write(dir.path().join("01-y.conf"), vec![b' '; LARGEST as usize + 1]).expect("written");
        std::fs::write(dir.path().join("02-z.conf"), b"\xff").expect("written");
        std::fs::create_dir(dir.path().join("03-d.conf")).expect("directory");
        let files = read(dir.path()).expect("read");
        assert_eq!(files.len(), 4);
        assert!(files.values().all(Result::is_err), "{files:?}");
    }

    #[test]
    fn the_binary_is_put_there_once_and_again_when_somebody_changed_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let from = dir.path().join("source");
        std::fs::write(&from, "plugin 1").expect("written");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("directory");
        let path = bin.join(PLUGIN);
        let mut known = None;
        assert!(put_binary(&from, &bin, &mut known).expect("put"));
        assert!(!put_binary(&from, &bin, &mut known).expect("there"));
        assert!(!put_binary(&from, &bin, &mut None).expect("there, by another process"));
        for harm in [
            |path: &Path| std::fs::write(path, "something").expect("written"),
            |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("mode"),
            |path: &Path| std::fs::remove_file(path).expect("removed"),
        ] {
            harm(&path);
            assert!(put_binary(&from, &bin, &mut known).expect("put"));
            assert_eq!(std::fs::read(&path).expect("read"), b"plugin 1");
            assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o755);
        }
        remove_binary(&bin).expect("removed");
        remove_binary(&bin).expect("twice is once");
        assert!(listed(&bin).is_empty());
    }
}
