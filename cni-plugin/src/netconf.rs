//! The network configuration on standard input: read strictly, so that a misspelt setting is an error and not a default.
//!
//! Keys of the specification are known and left to their owners; any other key is ours or a mistake (code 7).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{CniError, Code};
use crate::version::SpecVersion;

/// Where state is kept unless `stateDir` says otherwise.
pub const STATE_DIR: &str = "/var/lib/culvert/cni";
/// How long an ADD may take unless `timeoutSeconds` says otherwise. kubelet gives a sandbox four minutes.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest configuration read: prevResult of a pod with hundreds of addresses is a few KiB.
pub const MAX_STDIN: usize = 4 * 1024 * 1024;

/// Keys that the specification or libcni puts into a plugin's configuration (CNI 1.1, sections 1 and 3).
const SPEC_KEYS: [&str; 12] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "args",
    "ipMasq",
    "ipam",
    "dns",
    "disableCheck",
    "disableGC",
];

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct Netconf {
    /// The version to answer in.
    pub version: SpecVersion,
    /// pod-watcher's socket.
    pub socket: PathBuf,
    /// For the whole of a call.
    pub timeout: Duration,
    /// Passed without asking anyone.
    pub exclude_namespaces: Vec<String>,
    /// See `mesh_api::link::state_dir`.
    pub state_dir: PathBuf,
    /// Result of the plugins before us.
    pub prev_result: Option<Value>,
    /// `cni.dev/valid-attachments`; `None` when the key is missing.
    pub valid_attachments: Option<Vec<(String, String)>>,
}

/// The version to answer in, as far as the input can be understood at all.
pub fn version_of(stdin: &[u8]) -> String {
    serde_json::from_slice::<Value>(stdin)
        .ok()
        .and_then(|value| value.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
        .filter(|text| SpecVersion::parse(text).is_ok())
        .unwrap_or_else(|| SpecVersion::NEWEST.as_str().to_owned())
}

impl Netconf {
    /// What can be read of standard input; the rest has its default. For DEL: no configuration, also one that was written for a newer
    /// plugin, may keep a pod from going away.
    pub fn lenient(stdin: &[u8]) -> Self {
        let object: Map<String, Value> = serde_json::from_slice(stdin).unwrap_or_default();
        let version = object.get("cniVersion").and_then(Value::as_str).and_then(|text| SpecVersion::parse(text).ok());
        let alone = |(key, value): (&String, &Value)| Map::from_iter([(key.clone(), value.clone())]);
        let usable = object.iter().map(alone).filter(|setting| Own::read(setting).is_ok()).flatten().collect();
        let Own { socket, timeout, exclude_namespaces, state_dir } = Own::read(&usable).unwrap_or_default();
        Self {
            version: version.unwrap_or(SpecVersion::NEWEST),
            socket,
            timeout,
            exclude_namespaces,
            state_dir,
            prev_result: object.get("prevResult").cloned(),
            valid_attachments: None,
        }
    }

    /// From standard input.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let object: Map<String, Value> = serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(
                Code::Decode,
                format!("network configuration is not a JSON object: {error}"),
                "check the conflist in /etc/cni/net.d",
            )
        })?;
        let version = match object.get("cniVersion") {
            Some(Value::String(text)) => SpecVersion::parse(text)?,
            Some(_) => return Err(config("cniVersion is not a string")),
            // CNI 0.1.0 is what a missing version means, and we do not speak it.
            None => return Err(SpecVersion::parse("0.1.0").expect_err("0.1.0 is not in the list")),
        };
        match object.get("name") {
            Some(Value::String(name)) if !name.is_empty() => {}
            _ => return Err(config("name of the network is missing")),
        }
        let own = Own::read(&object)?;
        if let Some(key) = object.keys().find(|key| !known(key)) {
            let key: String = key.chars().take(60).collect();
            return Err(config(format!("{key:?} is not a setting of culvert-cni")));
        }
        let prev_result = object.get("prevResult").filter(|value| !value.is_null()).cloned();
        let valid_attachments = object.get("cni.dev/valid-attachments").map(attachments).transpose()?;
        let Own { socket, timeout, exclude_namespaces, state_dir } = own;
        Ok(Self { version, socket, timeout, exclude_namespaces, state_dir, prev_result, valid_attachments })
    }
}

/// Our settings.
struct Own {
    socket: PathBuf,
    timeout: Duration,
    exclude_namespaces: Vec<String>,
    state_dir: PathBuf,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            socket: mesh_api::link::cni::SOCKET.into(),
            timeout: TIMEOUT,
            exclude_namespaces: vec!["kube-system".to_owned()],
            state_dir: STATE_DIR.into(),
        }
    }
}

impl Own {
    fn read(object: &Map<String, Value>) -> Result<Self, CniError> {
        let mut own = Self::default();
        let absolute = |key: &str| match object.get(key) {
            None => Ok(None),
            Some(Value::String(path)) if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
            Some(_) => Err(config(format!("{key} is not an absolute path"))),
        };
        if let Some(socket) = absolute("socket")? {
            own.socket = socket;
        }
        if let Some(state_dir) = absolute("stateDir")? {
            own.state_dir = state_dir;
        }
        if let Some(value) = object.get("timeoutSeconds") {
            // The upper bound stays under kubelet's own limit for a sandbox (4 minutes, twice tried).
            let seconds = value.as_u64().filter(|seconds| (1..=120).contains(seconds));
            own.timeout = Duration::from_secs(
                seconds.ok_or_else(|| config("timeoutSeconds is not a whole number from 1 to 120"))?,
            );
        }
        if let Some(value) = object.get("excludeNamespaces") {
            let names =
                value.as_array().and_then(|list| list.iter().map(|name| name.as_str().map(str::to_owned)).collect());
            own.exclude_namespaces = names.ok_or_else(|| config("excludeNamespaces is not a list of names"))?;
        }
        Ok(own)
    }
}

fn known(key: &str) -> bool {
    // CNI 1.1, section 1: keys under `cni.dev/` belong to the specification.
    SPEC_KEYS.contains(&key)
        || key.starts_with("cni.dev/")
        || matches!(key, "prevResult" | "socket" | "timeoutSeconds" | "excludeNamespaces" | "stateDir")
}

/// `[{"containerID": …, "ifname": …}]` (CNI 1.1, GC).
fn attachments(value: &Value) -> Result<Vec<(String, String)>, CniError> {
    let read = |entry: &Value| -> Option<(String, String)> {
        Some((entry.get("containerID")?.as_str()?.to_owned(), entry.get("ifname")?.as_str()?.to_owned()))
    };
    // One that cannot be read must not make the others look gone: the whole list is refused.
    value
        .as_array()
        .and_then(|list| list.iter().map(read).collect())
        .ok_or_else(|| config("cni.dev/valid-attachments is not a list of {containerID, ifname}"))
}

fn config(what: impl std::fmt::Display) -> CniError {
    CniError::new(
        Code::Config,
        format!("network configuration of culvert-cni: {what}"),
        "correct the conflist in /etc/cni/net.d",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Netconf, CniError> {
        Netconf::parse(text.as_bytes())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let read = parse(r#"{"cniVersion":"1.1.0","name":"n","type":"culvert-cni"}"#).expect("minimal");
        assert_eq!(
            (read.timeout.as_secs(), read.state_dir.as_path()),
            (15, std::path::Path::new("/var/lib/culvert/cni"))
        );
        assert_eq!(read.exclude_namespaces, ["kube-system"]);
        assert!(read.valid_attachments.is_none());
    }

    #[test]
    fn what_libcni_adds_is_accepted_and_what_nobody_knows_is_refused() {
        let head = r#""cniVersion":"1.0.0","name":"n","type":"culvert-cni""#;
        let cases = [
            (
                r#""capabilities":{"portMappings":true},"runtimeConfig":{},"prevResult":{},"cni.dev/attachments":[]"#,
                None,
            ),
            (r#""timeoutSecond":3"#, Some("\"timeoutSecond\" is not a setting")),
            (r#""timeoutSeconds":0"#, Some("timeoutSeconds is not")),
            (r#""timeoutSeconds":"3""#, Some("timeoutSeconds is not")),
            (r#""socket":"cni.sock""#, Some("socket is not an absolute path")),
            (r#""stateDir":7"#, Some("stateDir is not an absolute path")),
            (r#""excludeNamespaces":"a""#, Some("excludeNamespaces is not")),
            (r#""cni.dev/valid-attachments":[{"containerID":"a"}]"#, Some("valid-attachments is not")),
        ];
        for (rest, refused) in cases {
            match (parse(&format!("{{{head},{rest}}}")), refused) {
                (Ok(_), None) => {}
                (Err(error), Some(text)) => {
                    assert_eq!(error.code, Code::Config, "{rest}");
                    assert!(error.msg.contains(text), "{}", error.msg);
                }
                (other, _) => panic!("{rest}: {other:?}"),
            }
        }
    }

    #[test]
    fn del_reads_past_whatever_it_cannot_use() {
        let text =
            r#"{"cniVersion":"9","future":1,"timeoutSeconds":"x","stateDir":"/elsewhere","socket":7,"prevResult":[]}"#;
        let read = Netconf::lenient(text.as_bytes());
        assert_eq!((read.timeout, read.version), (TIMEOUT, SpecVersion::NEWEST));
        assert_eq!(read.socket, std::path::Path::new(mesh_api::link::cni::SOCKET));
        assert_eq!(read.state_dir, std::path::Path::new("/elsewhere"));
    }

    #[test]
    fn versions_are_exact() {
        assert_eq!(parse(r#"{"name":"n"}"#).expect_err("0.1.0").code, Code::Version);
        assert_eq!(parse(r#"{"cniVersion":"0.2.0","name":"n"}"#).expect_err("old").code, Code::Version);
        assert_eq!(parse(r#"{"cniVersion":1,"name":"n"}"#).expect_err("number").code, Code::Config);
    }

    proptest! {
        #[test]
        fn garbage_is_code_6_or_7_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let error = Netconf::parse(&bytes).expect_err("garbage");
            prop_assert!(matches!(error.code, Code::Decode | Code::Config), "{error:?}");
        }

        #[test]
        fn any_json_value_in_a_setting_is_taken_or_code_7(
            key in prop_oneof!["socket", "timeoutSeconds", "excludeNamespaces", "stateDir", "cni.dev/valid-attachments", "[a-z]{1,8}"],
            value in prop_oneof!["[0-9]{1,20}", "\"[a-z/]{0,9}\"", Just("null".to_owned()), Just("[{}]".to_owned()), Just("{\"a\":[]}".to_owned())],
        ) {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","{key}":{value}}}"#);
            if let Err(error) = parse(&text) {
                prop_assert!(matches!(error.code, Code::Decode | Code::Config | Code::Version), "{error:?}");
            }
        }
    }
}
