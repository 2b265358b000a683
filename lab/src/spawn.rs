//! Starting a program in a node, in a pod or on the fabric, as exactly the user and with exactly the capabilities asked.
//!
//! Two halves. Here, in the lab: pick the namespaces and the cgroup, start `culvert-lab spawn-as SPEC` with its pid
//! namespace already set. There (`spawn_as`): that process joins the rest, gives up what it must not have, and becomes
//! the program by exec, so the pid the lab knows is the program's, as a direct child whose end it can wait for.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::proc::{self, Exit, Pid};
use crate::state::Dir;
use crate::{binaries, cgroup, ns, wait};

/// What to run, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Unique in the lab; names its log files.
    pub name: String,
    /// The program and its arguments. A bare name is looked up in the lab's own binaries first, then in PATH.
    pub argv: Vec<String>,
    /// As whom.
    pub user: User,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Memory limit in bytes: the program gets a cgroup of its own.
    pub memory: Option<u64>,
    /// Cgroup below the lab's; chosen by the place when absent.
    pub cgroup: Option<String>,
    /// What its view of the file system differs in.
    pub mounts: Mounts,
    /// Keep a pipe to its standard input.
    pub stdin: bool,
}

/// The user, groups and capabilities of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// uid
    pub uid: u32,
    /// gid
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Bounding set, and for root also what it has. `None`: all the lab has. Names as in `CAP_NET_ADMIN`, without `CAP_`.
    pub caps: Option<Vec<String>>,
    /// Set no_new_privs before exec (a container with `allowPrivilegeEscalation: false`).
    pub no_new_privs: bool,
}

/// What a container runtime gives a container that asks for nothing (containerd's default set).
pub const CONTAINER_CAPS: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl User {
    /// Root with every capability.
    pub fn root() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), caps: None, no_new_privs: false }
    }

    /// Root as a plain container has it: the runtime's default capabilities.
    pub fn container() -> User {
        User::root().with_caps(&CONTAINER_CAPS)
    }

    /// A user without any capability.
    pub fn plain(uid: u32) -> User {
        User { uid, gid: uid, groups: Vec::new(), caps: Some(Vec::new()), no_new_privs: true }
    }

    /// With these capabilities and no others.
    pub fn with_caps(mut self, caps: &[&str]) -> User {
        self.caps = Some(caps.iter().map(|c| (*c).to_owned()).collect());
        self
    }
}

/// Differences of a program's mount namespace from its place's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// (source, target): bind mounts, a container's hostPath and file mounts.
    pub bind: Vec<(PathBuf, PathBuf)>,
    /// Directories hidden by an empty, read-only tmpfs.
    pub hide: Vec<PathBuf>,
    /// `readOnlyRootFilesystem: true`: `/` cannot be written, what is mounted below it still can.
    pub read_only_root: bool,
}

impl Program {
    /// A program as root with all capabilities.
    pub fn new(name: impl Into<String>, argv: &[&str]) -> Program {
        Program {
            name: name.into(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            user: User::root(),
            env: BTreeMap::new(),
            memory: None,
            cgroup: None,
            mounts: Mounts::default(),
            stdin: false,
        }
    }

    /// As this user.
    pub fn as_user(mut self, user: User) -> Program {
        self.user = user;
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.env.insert(name.into(), value.into());
        self
    }

    /// With a memory limit, in bytes.
    pub fn memory_limit(mut self, bytes: u64) -> Program {
        self.memory = Some(bytes);
        self
    }

    /// With a pipe to its standard input ([`crate::Process::write_line`]).
    pub fn with_stdin(mut self) -> Program {
        self.stdin = true;
        self
    }

    /// With more arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Program {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }
}

/// Where a program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// pid 1 of the node: its pid, uts and ipc namespaces, and its mounts unless `mount` says otherwise.
    pub(crate) init: Pid,
    /// Network namespace, as a path seen from outside.
    pub(crate) net: PathBuf,
    /// Mount namespace, as a path seen from outside.
    pub(crate) mount: PathBuf,
    /// Cgroup below the lab's for programs that name none; each gets a group of its own inside.
    pub(crate) cgroup: String,
}

/// What `spawn-as` is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) argv: Vec<String>,
    pub(crate) user: User,
    pub(crate) join: Vec<PathBuf>,
    pub(crate) init: Pid,
    pub(crate) net: PathBuf,
    pub(crate) mount: PathBuf,
    pub(crate) mounts: Mounts,
}

/// Output of a program that ran to its end.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output if it ended with code 0; else an error with what it printed.
    pub fn ok(self) -> Result<String> {
        match self.exit.success() {
            true => Ok(self.stdout),
            false => bail!("ended with {:?}: {}{}", self.exit, self.stderr.trim(), self.stdout.trim()),
        }
    }
}

/// A program that was just started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Where its own output begins in the log files, which may hold that of an earlier run.
    pub(crate) out_from: u64,
    pub(crate) log_from: u64,
}

/// Starts a program; its output goes to the lab's log files, appended.
pub(crate) fn start(lab: &Dir, at: &Place, program: &Program) -> Result<Started> {
    let log = |suffix: &str| -> Result<File> {
        let path = lab.join(format!("logs/{}.{suffix}", program.name));
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
    };
    let (out, err) = (log("out")?, log("log")?);
    let (out_from, log_from) = (out.metadata()?.len(), err.metadata()?.len());
    let mut command = command(lab, at, program)?;
    command.stdin(if program.stdin { Stdio::piped() } else { Stdio::null() }).stdout(out).stderr(err);
    let child =
        ns::spawn_in_pidns(&at.init.ns("pid"), &mut command).with_context(|| format!("start {}", program.name))?;
    Ok(Started { pid: proc::adopt(child)?, out_from, log_from })
}

/// Runs a program to its end; killed at the deadline.
pub(crate) fn exec(lab: &Dir, at: &Place, program: &Program, input: &[u8], deadline: Duration) -> Result<Output> {
    let mut command = command(lab, at, program)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ns::spawn_in_pidns(&at.init.ns("pid"), &mut command)?;
    let pid = Pid::of(child.id())?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    let (mut out, mut err) = (child.stdout.take().context("a pipe")?, child.stderr.take().context("a pipe")?);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write;
            let _ = stdin.write_all(input); // a program may end without reading it
        });
        let stdout = scope.spawn(move || read_all(&mut out));
        let stderr = scope.spawn(move || read_all(&mut err));
        pid.wait_end(deadline);
        let what = format!("{:?} to end within {:.1} s", program.argv, deadline.as_secs_f64());
        let ended = wait::until(&what, Duration::from_millis(50), || child.try_wait().ok().flatten());
        if ended.is_err() {
            pid.signal(rustix::process::Signal::KILL);
            let _ = child.wait();
        }
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        match ended {
            Ok(status) => Ok(Output { exit: status.into(), stdout, stderr }),
            Err(error) => Err(error.context(format!("it had printed: {stdout}{stderr}"))),
        }
    })
}

/// Runs a program with this terminal as its own; for people.
pub(crate) fn exec_attached(lab: &Dir, at: &Place, program: &Program) -> Result<Exit> {
    let mut child = ns::spawn_in_pidns(&at.init.ns("pid"), &mut command(lab, at, program)?)?;
    Ok(child.wait()?.into())
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn command(lab: &Dir, at: &Place, program: &Program) -> Result<Command> {
    let group = match &program.cgroup {
        Some(group) => group.clone(),
        None if program.memory.is_some() => format!("{}/{}", at.cgroup, program.name),
        None => format!("{}/main", at.cgroup),
    };
    let mut argv = program.argv.clone();
    let first = argv.first_mut().with_context(|| format!("program {} has no argv", program.name))?;
    if !first.contains('/') && binaries::own(first).is_some() {
        *first = format!("{}/{first}", crate::init::BIN);
    }
    let spec = Spec {
        argv,
        user: program.user.clone(),
        join: cgroup::prepare(lab.name(), &group, program.memory)?,
        init: at.init,
        net: at.net.clone(),
        mount: at.mount.clone(),
        mounts: program.mounts.clone(),
    };
    let mut command = Command::new(binaries::lab()?);
    command.arg("spawn-as").arg(serde_json::to_string(&spec)?).env_clear();
    for name in ["RUST_BACKTRACE", "CULVERT_LOG", "CULVERT_TESTING_DELAY_US", "TERM", "LLVM_PROFILE_FILE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("PATH", SYSTEM_PATH).env("HOME", "/root").env("CULVERT_LAB", lab.name()).envs(&program.env);
    Ok(command)
}

/// Where a node's programs are looked up.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the binary `name` of the machine is, if it is installed.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    SYSTEM_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}
