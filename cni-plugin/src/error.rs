//! What the runtime is told when a call fails (CNI 1.1, "Error").
//!
//! The plugin's only output besides a result. Every message names its object, the details say what to do next.

use serde_json::json;

/// Error codes of CNI 1.1 that this plugin uses; kubelet shows code, msg and details in the pod's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1: a spec version that we do not speak, or that lacks the verb.
    Version,
    /// 4: an environment variable is missing or malformed.
    Environment,
    /// 5: reading standard input failed, or the socket is not what it should be.
    Io,
    /// 6: standard input is not JSON of the right shape.
    Decode,
    /// 7: the network configuration cannot be used.
    Config,
    /// 11: pod-watcher could not be asked in time; trying again may succeed.
    TryAgain,
    /// As pod-watcher decided: 11, or its own codes from 100.
    Watcher(u32),
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Code::Version => 1,
            Code::Environment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::Config => 7,
            Code::TryAgain => 11,
            Code::Watcher(code) => code,
        }
    }
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// The code.
    pub code: Code,
    /// What happened to which object.
    pub msg: String,
    /// What to do next.
    pub details: String,
}

impl CniError {
    /// With everything the runtime shows.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The answer on standard output, in the version that was asked for where that much was understood.
    pub fn to_json(&self, version: &str) -> Vec<u8> {
        let Self { code, msg, details } = self;
        let mut answer = json!({ "cniVersion": version, "code": code.number(), "msg": msg });
        if !details.is_empty() {
            answer["details"] = json!(details);
        }
        answer.to_string().into_bytes()
    }
}
