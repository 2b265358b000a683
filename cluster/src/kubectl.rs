//! kubectl as administrator, from the control plane's network namespace: the only client of the API server here.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::make::Cluster;

/// Longest time one call may take, `wait` and `rollout status` included: `timeout` ends it.
const LONGEST: &str = "300";

impl Cluster {
    /// A command that finds the cluster: run it in the control plane's network namespace ([`lab::Node::in_netns`] of
    /// [`Lab::fabric`](lab::Lab::fabric)).
    pub fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new(program);
        // Its caches would else be left in the person's home.
        command.env("KUBECONFIG", self.kubeconfig()).env("KUBECACHEDIR", self.lab().dir().join("kube-cache"));
        command
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.lab().dir().join("pki/admin.conf")
    }

    /// Runs kubectl; what it printed, or an error with what it complained about.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with("", args)
    }

    /// The same with standard input.
    pub fn kubectl_with(&self, input: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command("timeout".as_ref());
        command.args(["--kill-after=5", LONGEST]).arg(&self.parts().kubectl).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.lab().fabric().in_netns(|| command.spawn().context("start kubectl (under timeout)"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input.as_bytes()); // it may end without reading it
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let said =
            if output.status.code() == Some(124) { format!("no end within {LONGEST} s: {said}") } else { said.into() };
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object or a list, as the API server has it.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).context("parse what kubectl printed")
    }

    /// Creates or changes objects given as YAML.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with(manifests, &["apply", "-f", "-"]).map(drop)
    }
}
