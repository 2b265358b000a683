//! The environment of a call: read once through a function, checked, immutable after.
//!
//! CNI 1.1, section 2, "Parameters". A malformed value is code 4 and names the variable.

use std::path::PathBuf;

use crate::error::{CniError, Code};

/// Where variables come from; tests pass a table.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The operation (CNI_COMMAND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A container joins.
    Add,
    /// A container leaves.
    Del,
    /// Is it still as it was?
    Check,
    /// Only these attachments remain.
    Gc,
    /// Could an ADD be taken?
    Status,
    /// Which versions?
    Version,
}

impl Command {
    /// From CNI_COMMAND.
    pub fn read(lookup: Lookup<'_>) -> Result<Self, CniError> {
        let text = required(lookup, "CNI_COMMAND")?;
        Ok(match text.as_str() {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(bad("CNI_COMMAND", format!("is {other:?}"), "use ADD, DEL, CHECK, GC, STATUS or VERSION"));
            }
        })
    }
}

/// One container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// CNI_CONTAINERID.
    pub id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The pod, from CNI_ARGS.
    pub pod: PodArgs,
}

/// What kubelet's runtime says about the pod in CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodArgs {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID; empty where the runtime does not send it.
    pub uid: String,
}

impl Container {
    /// The same for DEL, as far as it can be read: a pod is found by its container's id too.
    pub fn lenient(lookup: Lookup<'_>) -> Option<Self> {
        let ifname = interface_name(lookup).unwrap_or_default();
        Some(Self { id: id(lookup).ok()?, ifname, pod: PodArgs::lenient(&lookup("CNI_ARGS").unwrap_or_default()) })
    }

    /// From CNI_CONTAINERID, CNI_IFNAME and CNI_ARGS.
    pub fn read(lookup: Lookup<'_>) -> Result<Self, CniError> {
        let (id, ifname) = (id(lookup)?, interface_name(lookup)?);
        let pod = PodArgs::parse(&lookup("CNI_ARGS").unwrap_or_default())?;
        Ok(Self { id, ifname, pod })
    }
}

fn id(lookup: Lookup<'_>) -> Result<String, CniError> {
    let id = required(lookup, "CNI_CONTAINERID")?;
    // CNI 1.1: "Must not be empty. Must start with an alphanumeric character, optionally followed by any combination of one or
    // more alphanumeric characters, underscore (_), dot (.) or hyphen (-)." The length is ours: it becomes a file name.
    let fine = id.len() <= 200
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if fine {
        return Ok(id);
    }
    Err(bad("CNI_CONTAINERID", "is not a container id of the spec's form", "letters, digits, '_', '.', '-', up to 200"))
}

fn interface_name(lookup: Lookup<'_>) -> Result<String, CniError> {
    let ifname = required(lookup, "CNI_IFNAME")?;
    // As libcni's ValidateInterfaceName, after the kernel's dev_valid_name.
    let fine = ifname.len() <= 15
        && !matches!(ifname.as_str(), "." | "..")
        && !ifname.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if fine {
        return Ok(ifname);
    }
    Err(bad("CNI_IFNAME", "is not an interface name", "at most 15 characters, no '/', ':' or space"))
}

impl PodArgs {
    /// From `KEY=VALUE;KEY=VALUE`. Keys that are not ours are left alone: other plugins of the chain read them.
    fn parse(text: &str) -> Result<Self, CniError> {
        let (mut namespace, mut name, mut uid) = (String::new(), String::new(), String::new());
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let pair: String = pair.chars().take(40).collect();
                return Err(bad(
                    "CNI_ARGS",
                    format!("holds {pair:?}, which is not KEY=VALUE"),
                    "pairs are separated by ';'",
                ));
            };
            match key {
                "K8S_POD_NAMESPACE" => namespace = value.to_owned(),
                "K8S_POD_NAME" => name = value.to_owned(),
                "K8S_POD_UID" => uid = value.to_owned(),
                _ => {}
            }
        }
        let dns = |text: &str| {
            text.len() <= 253 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        };
        if !dns(&namespace) || !dns(&name) {
            return Err(bad(
                "CNI_ARGS",
                "names a pod or namespace that is not a DNS name",
                "check what the runtime sends",
            ));
        }
        if !uid.is_empty() && mesh_uid(&uid).is_none() {
            return Err(bad("CNI_ARGS", "holds a K8S_POD_UID that is not a pod uid", "check what the runtime sends"));
        }
        Ok(Self { namespace, name, uid })
    }

    /// What can be read of it: each pair alone.
    fn lenient(text: &str) -> Self {
        let mut whole = Self { namespace: String::new(), name: String::new(), uid: String::new() };
        for Self { namespace, name, uid } in text.split(';').filter_map(|pair| Self::parse(pair).ok()) {
            for (known, found) in [(&mut whole.namespace, namespace), (&mut whole.name, name), (&mut whole.uid, uid)] {
                if !found.is_empty() {
                    *known = found;
                }
            }
        }
        whole
    }

    /// ADD and CHECK need to know whose netns it is: what has no name cannot be judged.
    pub fn require_named(&self) -> Result<(), CniError> {
        if self.namespace.is_empty() || self.name.is_empty() {
            return Err(bad(
                "CNI_ARGS",
                "names no pod (K8S_POD_NAMESPACE and K8S_POD_NAME)",
                "culvert-cni serves Kubernetes pods: take it out of this network's conflist, or have the runtime send both",
            ));
        }
        Ok(())
    }
}

/// The same characters as `mesh_model::PodUid`; the plugin does not depend on the model.
fn mesh_uid(text: &str) -> Option<&str> {
    let fine = text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with('.');
    fine.then_some(text)
}

/// CNI_NETNS, which ADD and CHECK need.
pub fn netns(lookup: Lookup<'_>) -> Result<PathBuf, CniError> {
    required(lookup, "CNI_NETNS").map(PathBuf::from)
}

fn required(lookup: Lookup<'_>, name: &str) -> Result<String, CniError> {
    lookup(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| bad(name, "is not set", "a container runtime sets it; see the CNI specification"))
}

fn bad(name: &str, what: impl std::fmt::Display, next: &str) -> CniError {
    CniError::new(Code::Environment, format!("{name} {what}"), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(pairs: &[(&str, &str)]) -> Result<Container, CniError> {
        let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Container::read(&lookup)
    }

    const FINE: [(&str, &str); 3] = [
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_IFNAME", "eth0"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=1-2",
        ),
    ];

    #[test]
    fn a_call_of_containerd_is_read_whole() {
        let read = container(&FINE).expect("fine");
        assert_eq!(
            (read.pod.namespace.as_str(), read.pod.name.as_str(), read.pod.uid.as_str()),
            ("shop", "cart-0", "1-2")
        );
    }

    #[test]
    fn each_malformed_variable_is_code_4_and_named() {
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=a/b"),
            ("CNI_ARGS", "K8S_POD_UID=../x"),
        ] {
            let mut pairs = FINE;
            pairs.iter_mut().filter(|(key, _)| *key == name).for_each(|pair| pair.1 = value);
            let error = container(&pairs).expect_err(value);
            assert_eq!(error.code, Code::Environment, "{name}={value}");
            assert!(error.msg.starts_with(name), "{}", error.msg);
        }
    }

    #[test]
    fn a_del_has_what_can_be_read_of_its_variables() {
        let lenient = |args: &str, ifname: &str| {
            let pairs = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", ifname), ("CNI_ARGS", args)];
            let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            let Container { ifname, pod: PodArgs { namespace, name, uid }, .. } =
                Container::lenient(&lookup).expect("an id");
            format!("{ifname} {namespace}/{name} {uid}")
        };
        assert_eq!(lenient(FINE[2].1, "eth0"), "eth0 shop/cart-0 1-2");
        assert_eq!(lenient("K8S_POD_NAMESPACE=shop;what;K8S_POD_NAME=a/b;K8S_POD_UID=1;=;", "a/b"), " shop/ 1");
        assert_eq!(lenient(";;;", ""), " / ");
        assert_eq!(Container::lenient(&|_| None), None);
        assert_eq!(Container::lenient(&|name| (name == "CNI_CONTAINERID").then(|| "../x".to_owned())), None);
    }

    #[test]
    fn a_container_that_is_no_pod_is_named_as_such() {
        let read = container(&[("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]).expect("fine for DEL");
        assert_eq!(read.pod.require_named().expect_err("no pod").code, Code::Environment);
    }
}
