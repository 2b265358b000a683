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
use netconf::{MAX_STDIN, Netconf};

fn main() -> ExitCode {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut stdin = Vec::new();
    let read = std::io::stdin().lock().take(MAX_STDIN as u64 + 1).read_to_end(&mut stdin);
    let answer = match env::Command::read(&lookup) {
        // Whatever came of reading: a container must always be able to go away.
        Ok(env::Command::Del) => Ok(del::run(&lookup, &stdin)),
        command => read.map_err(unreadable).and_then(|_| run(command?, &lookup, &stdin)),
    };
    let (answer, code) = match answer {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&netconf::version_of(&stdin)), ExitCode::FAILURE),
    };
    // A runtime that closed our standard output has stopped listening: there is nobody left to tell.
    let _ = std::io::stdout().lock().write_all(&answer);
    code
}

/// One call: what goes to standard output.
fn run(command: env::Command, lookup: env::Lookup<'_>, stdin: &[u8]) -> Result<Vec<u8>, CniError> {
    if stdin.len() > MAX_STDIN {
        return Err(CniError::new(
            Code::Decode,
            "network configuration is larger than 4 MiB",
            "check the conflist in /etc/cni/net.d",
        ));
    }
    match command {
        env::Command::Version => version::run(stdin),
        env::Command::Add => add::run(lookup, Netconf::parse(stdin)?),
        env::Command::Del => Ok(del::run(lookup, stdin)),
        env::Command::Check => check::run(lookup, Netconf::parse(stdin)?),
        env::Command::Gc => gc::run(Netconf::parse(stdin)?),
        env::Command::Status => status::run(Netconf::parse(stdin)?),
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
            verb in proptest::sample::select(vec![env::Command::Add, env::Command::Check, env::Command::Gc, env::Command::Status]),
        ) {
            let error = run(verb, &|_| None, &bytes).expect_err("garbage");
            prop_assert!(matches!(error.code, Code::Decode | Code::Config), "{error:?}");
            let printed: serde_json::Value = serde_json::from_slice(&error.to_json(&netconf::version_of(&bytes))).expect("JSON");
            prop_assert_eq!(printed["code"].as_u64(), Some(u64::from(error.code.number())));
        }
    }

    #[test]
    fn a_call_without_a_command_is_code_4() {
        let error = env::Command::read(&|_| None).expect_err("no CNI_COMMAND");
        assert_eq!(error.code, Code::Environment);
    }
}
