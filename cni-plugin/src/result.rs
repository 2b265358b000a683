//! The result of ADD: what the plugins before us made, passed on in the version that was asked for.
//!
//! A chained plugin that changes no interface returns prevResult (CNI 1.1, section 5). Within one version it goes through untouched,
//! unknown keys included; between versions only what the versions differ in is changed.

use serde_json::{Map, Value, json};

use crate::error::{CniError, Code};
use crate::version::SpecVersion;

/// Keys of an interface that came with 1.1.0.
const INTERFACE_1_1: [&str; 3] = ["mtu", "socketPath", "pciID"];
/// Keys of a route that came with 1.1.0.
const ROUTE_1_1: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// The pod's network as the plugins before us left it.
#[derive(Clone, Debug, PartialEq)]
pub struct PrevResult {
    object: Map<String, Value>,
    version: SpecVersion,
    addresses: Vec<std::net::IpAddr>,
}

impl PrevResult {
    /// From `prevResult`; where it does not name its version it has the configuration's (libcni converts before it calls us).
    pub fn read(value: Option<Value>, asked: SpecVersion) -> Result<Self, CniError> {
        let Some(value) = value else {
            return Err(CniError::new(
                Code::Config,
                "network configuration of culvert-cni has no prevResult",
                "culvert-cni is a chained plugin: put it after the plugin that makes the interface, in a .conflist",
            ));
        };
        let Value::Object(object) = value else { return Err(malformed("is not an object")) };
        let version = match object.get("cniVersion") {
            None => asked,
            Some(Value::String(text)) => SpecVersion::parse(text)?,
            Some(_) => return Err(malformed("has a cniVersion that is not a string")),
        };
        for key in ["interfaces", "ips", "routes"] {
            let fine = match object.get(key) {
                None | Some(Value::Null) => true,
                Some(Value::Array(list)) => list.iter().all(Value::is_object),
                Some(_) => false,
            };
            if !fine {
                return Err(malformed(&format!("has {key} that are not a list of objects")));
            }
        }
        let addresses = entries(&object, "ips").map(address).collect::<Option<_>>();
        let addresses = addresses.ok_or_else(|| malformed("has an entry of ips without a usable address"))?;
        Ok(Self { object, version, addresses })
    }

    /// Every address the pod got.
    pub fn addresses(&self) -> &[std::net::IpAddr] {
        &self.addresses
    }

    /// The result in the version asked for.
    pub fn into_json(self, asked: SpecVersion) -> Vec<u8> {
        let Self { mut object, version, addresses } = self;
        object.insert("cniVersion".to_owned(), json!(asked.as_str()));
        if (version < SpecVersion::V1_0_0) != (asked < SpecVersion::V1_0_0) {
            for (entry, address) in entries_mut(&mut object, "ips").zip(addresses) {
                // 1.0.0 took `version` away: the address says it.
                if asked < SpecVersion::V1_0_0 {
                    entry.insert("version".to_owned(), json!(if address.is_ipv4() { "4" } else { "6" }));
                } else {
                    entry.remove("version");
                }
            }
        }
        if version >= SpecVersion::V1_1_0 && asked < SpecVersion::V1_1_0 {
            entries_mut(&mut object, "interfaces")
                .for_each(|entry| entry.retain(|key, _| !INTERFACE_1_1.contains(&key.as_str())));
            entries_mut(&mut object, "routes")
                .for_each(|entry| entry.retain(|key, _| !ROUTE_1_1.contains(&key.as_str())));
        }
        Value::Object(object).to_string().into_bytes()
    }
}

fn entries<'a>(object: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    object.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

fn entries_mut<'a>(object: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// `198.18.1.2/24`.
fn address(entry: &Map<String, Value>) -> Option<std::net::IpAddr> {
    let text = entry.get("address")?.as_str()?;
    let (address, _prefix) = text.split_once('/')?;
    address.parse().ok()
}

fn malformed(what: &str) -> CniError {
    CniError::new(Code::Decode, format!("prevResult {what}"), "the plugin before culvert-cni in the conflist wrote it")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// prevResult as `bridge` and `host-local` of the reference plugins write it, per version.
    fn prev(version: SpecVersion) -> Value {
        let text = match version {
            SpecVersion::V0_3_1 => include_str!("../testdata/prev-0.3.1.json"),
            SpecVersion::V0_4_0 => include_str!("../testdata/prev-0.4.0.json"),
            SpecVersion::V1_0_0 => include_str!("../testdata/prev-1.0.0.json"),
            SpecVersion::V1_1_0 => include_str!("../testdata/prev-1.1.0.json"),
        };
        serde_json::from_str(text).expect("test data is JSON")
    }

    fn golden(version: SpecVersion) -> &'static str {
        match version {
            SpecVersion::V0_3_1 => include_str!("../testdata/result-0.3.1.json"),
            SpecVersion::V0_4_0 => include_str!("../testdata/result-0.4.0.json"),
            SpecVersion::V1_0_0 => include_str!("../testdata/result-1.0.0.json"),
            SpecVersion::V1_1_0 => include_str!("../testdata/result-1.1.0.json"),
        }
    }

    #[test]
    fn results_of_every_version_are_the_golden_files() {
        for version in SpecVersion::ALL {
            let result = PrevResult::read(Some(prev(version)), version).expect("readable").into_json(version);
            let result: Value = serde_json::from_slice(&result).expect("JSON");
            let pretty = format!("{}\n", serde_json::to_string_pretty(&result).expect("prints"));
            assert_eq!(pretty, golden(version), "{version:?}");
        }
    }

    #[test]
    fn a_result_of_one_version_is_readable_as_any_other() {
        for from in SpecVersion::ALL {
            for to in SpecVersion::ALL {
                let read = PrevResult::read(Some(prev(from)), to).expect("readable");
                assert_eq!(read.addresses().len(), 2);
                let result: Value = serde_json::from_slice(&read.into_json(to)).expect("JSON");
                assert_eq!(result["cniVersion"], to.as_str());
                let with_version = result["ips"].as_array().expect("list").iter().all(|ip| ip.get("version").is_some());
                assert_eq!(with_version, to < SpecVersion::V1_0_0, "{from:?} to {to:?}");
                if to < SpecVersion::V1_1_0 {
                    assert!(result["interfaces"][1].get("mtu").is_none(), "{from:?} to {to:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let asked = SpecVersion::V1_0_0;
        for (value, code) in [
            (None, Code::Config),
            (Some(json!([])), Code::Decode),
            (Some(json!({"cniVersion": 1})), Code::Decode),
            (Some(json!({"cniVersion": "0.2.0"})), Code::Version),
            (Some(json!({"ips": {}})), Code::Decode),
            (Some(json!({"ips": [{"address": "198.18.1.2"}]})), Code::Decode),
            (Some(json!({"interfaces": ["eth0"]})), Code::Decode),
        ] {
            assert_eq!(PrevResult::read(value.clone(), asked).expect_err("refused").code, code, "{value:?}");
        }
    }
}
