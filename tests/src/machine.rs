//! The machine's own state, before and after: what a lab or a cluster must not change and must not leave.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The machine's own links, addresses, routes, rules, firewall, network settings, mounts and named namespaces.
#[derive(Debug)]
pub(crate) struct Machine(BTreeMap<String, String>);

/// Where container runtimes, kubelets, CNI and we keep things.
const DIRECTORIES: [&str; 11] = [
    "/run/netns",
    "/etc/cni",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/culvert",
    "/run/culvert",
    "/run/containerd",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/pods",
    "/etc/kubernetes",
];
/// What a kubelet sets where it may.
const TUNABLES: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

impl Machine {
    /// As it is.
    pub(crate) fn now() -> Result<Machine> {
        let mut all = BTreeMap::new();
        let commands: [&[&str]; 7] = [
            &["ip", "-o", "link"],
            &["ip", "-o", "addr"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "-4", "rule"],
            &["ip", "-6", "rule"],
            &["nft", "list", "ruleset"],
        ];
        for argv in commands {
            let output = Command::new(argv[0]).args(&argv[1..]).output().with_context(|| argv.join(" "))?;
            ensure!(output.status.success(), "{}: {}", argv.join(" "), String::from_utf8_lossy(&output.stderr));
            all.insert(argv.join(" "), without_timers(&String::from_utf8_lossy(&output.stdout)));
        }
        sysctls(Path::new("/proc/sys/net"), &mut all)?;
        for file in TUNABLES {
            all.insert(file.to_owned(), std::fs::read_to_string(file).with_context(|| format!("read {file}"))?);
        }
        for dir in DIRECTORIES {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            all.insert(dir.to_owned(), names.join(" "));
        }
        all.insert("mounts".into(), std::fs::read_to_string("/proc/self/mounts")?);
        Ok(Machine(all))
    }

    /// Everything that was there before is as it was. A kernel module that the first lab of a boot loads brings settings with it.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let Machine(now) = Machine::now()?;
        for (what, before) in &self.0 {
            ensure!(now.get(what) == Some(before), "{what} changed\nfrom {before}\nto   {:?}", now.get(what));
        }
        Ok(())
    }
}

/// Lifetimes of addresses and routes count down by themselves.
fn without_timers(text: &str) -> String {
    let timed = |word: &str| word.ends_with("sec") && word.trim_end_matches("sec").bytes().all(|b| b.is_ascii_digit());
    text.lines()
        .map(|line| line.split_whitespace().filter(|w| !timed(w)).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

fn sysctls(dir: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sysctls(&path, all)?;
        } else if !path.ends_with("nf_conntrack_count") {
            // Some may only be written.
            all.insert(path.display().to_string(), std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(())
}
