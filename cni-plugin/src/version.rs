//! VERSION: the spec versions this plugin answers, and which verb exists since when.

use serde::Deserialize;
use serde_json::json;

use crate::error::{CniError, Code};

/// A spec version that we answer; ordered as the spec is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1: ADD and DEL.
    V0_3_1,
    /// 0.4.0: CHECK came.
    V0_4_0,
    /// 1.0.0: `version` of an address went.
    V1_0_0,
    /// 1.1.0: GC and STATUS came.
    V1_1_0,
}

impl SpecVersion {
    /// All, oldest first.
    pub const ALL: [SpecVersion; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest: used in an answer when nobody said which.
    pub const NEWEST: SpecVersion = Self::V1_1_0;

    /// As written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// From `cniVersion`; exact, as libcni compares.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|version| version.as_str()).collect();
            CniError::new(
                Code::Version,
                format!("cniVersion {text:?} is not one that culvert-cni speaks"),
                format!("set cniVersion of the network configuration to one of {}", known.join(", ")),
            )
        })
    }

    /// The verb needs at least `since`.
    pub fn require(self, since: SpecVersion, verb: &str) -> Result<(), CniError> {
        if self >= since {
            return Ok(());
        }
        Err(CniError::new(
            Code::Version,
            format!("cniVersion {} has no {verb}", self.as_str()),
            format!("{verb} exists since cniVersion {}", since.as_str()),
        ))
    }
}

/// VERSION's input.
#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
}

/// Answers VERSION. An empty input is answered with the newest version: runtimes before 0.4.0 send none.
pub fn run(stdin: &[u8]) -> Result<Vec<u8>, CniError> {
    let asked = if stdin.iter().all(u8::is_ascii_whitespace) {
        None
    } else {
        let asked: Asked = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(
                Code::Decode,
                format!("standard input of VERSION is not a JSON object: {error}"),
                "send {\"cniVersion\": …}",
            )
        })?;
        asked.cni_version
    };
    let supported: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    // CNI 1.1 VERSION: "cniVersion: The value of cniVersion specified on input".
    let version = asked.unwrap_or_else(|| SpecVersion::NEWEST.as_str().to_owned());
    Ok(json!({ "cniVersion": version, "supportedVersions": supported }).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_echoes_what_was_asked_and_lists_all() {
        for (stdin, cni_version) in
            [(&b""[..], "1.1.0"), (br#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (br#"{"cniVersion":"9"}"#, "9")]
        {
            let answer = String::from_utf8(run(stdin).expect("answers")).expect("text");
            assert_eq!(
                answer,
                format!(r#"{{"cniVersion":"{cni_version}","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}}"#)
            );
        }
        assert_eq!(run(b"[").expect_err("not JSON").code, Code::Decode);
    }

    #[test]
    fn verbs_are_refused_before_the_version_that_brought_them() {
        assert!(SpecVersion::V0_3_1.require(SpecVersion::V0_4_0, "CHECK").is_err());
        assert!(SpecVersion::V1_1_0.require(SpecVersion::V1_1_0, "GC").is_ok());
    }
}
