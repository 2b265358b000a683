//! `culvert-cni`: the chained CNI plugin that holds a pod's start until the pod is captured and served.
//!
//! One file per verb, top to bottom what happens to a call: [mod@env] and [`netconf`] read it, [`add`], [`del`], [`check`], [`gc`],
//! [`status`] and [`version`] do it, [`ask`] talks to pod-watcher, [`standing`] decides without it, [`result`] and [`error`] answer.
//! The plugin holds no credentials, keeps nothing running and prints nothing but the answer: kubelet reads both streams.

mod add;
mod ask;
mod check;
mod del;
mod env;
mod error;
mod gc;
mod netconf;
mod result;
mod standing;
mod status;
mod version;

use std::io::{Read, Write};
use std::process::ExitCode;

use error::{CniError, Code};
use netconf::{MAX_STDIN, Netconf, Strictness};

fn main() -> ExitCode {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut stdin = Vec::new();
    let read = std::io::stdin().lock().take(MAX_STDIN as u64 + 1).read_to_end(&mut stdin);
    let (answer, code) = match read.map_err(unreadable).and_then(|_| run(&lookup, &stdin)) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&netconf::version_of(&stdin)), ExitCode::FAILURE),
    };
    // A runtime that closed our standard output has stopped listening: there is nobody left to tell.
    let _ = std::io::stdout().lock().write_all(&answer);
    code
}

/// One call: what goes to standard output.
fn run(lookup: env::Lookup<'_>, stdin: &[u8]) -> Result<Vec<u8>, CniError> {
    if stdin.len() > MAX_STDIN {
        return Err(CniError::new(
            Code::Decode,
            "network configuration is larger than 4 MiB",
            "check the conflist in /etc/cni/net.d",
        ));
    }
    match env::Command::read(lookup)? {
        env::Command::Version => version::run(stdin),
        env::Command::Add => add::run(lookup, Netconf::parse(stdin, Strictness::Strict)?),
        env::Command::Del => del::run(lookup, Netconf::parse(stdin, Strictness::Lenient)?),
        env::Command::Check => check::run(lookup, Netconf::parse(stdin, Strictness::Strict)?),
        env::Command::Gc => gc::run(Netconf::parse(stdin, Strictness::Strict)?),
        env::Command::Status => status::run(Netconf::parse(stdin, Strictness::Strict)?),
    }
}

fn unreadable(error: std::io::Error) -> CniError {
    CniError::new(
        Code::Io,
        format!("standard input could not be read: {error}"),
        "the runtime passes the network configuration there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_on_standard_input_never_panics_and_is_code_6_or_7(
            bytes in proptest::collection::vec(any::<u8>(), 1..300),
            verb in prop_oneof!["ADD", "DEL", "CHECK", "GC", "STATUS"],
        ) {
            let lookup = |name: &str| (name == "CNI_COMMAND").then(|| verb.clone());
            let error = run(&lookup, &bytes).expect_err("garbage");
            prop_assert!(matches!(error.code, Code::Decode | Code::Config), "{error:?}");
            let printed: serde_json::Value = serde_json::from_slice(&error.to_json(&netconf::version_of(&bytes))).expect("JSON");
            prop_assert_eq!(printed["code"].as_u64(), Some(u64::from(error.code.number())));
        }
    }

    #[test]
    fn a_call_without_a_command_is_code_4() {
        let error = run(&|_| None, b"{}").expect_err("no CNI_COMMAND");
        assert_eq!(error.code, Code::Environment);
    }
}
