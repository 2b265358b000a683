//! The annotations by which a pod leaves some of its traffic outside of capture.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use mesh_model::Exclusions;
use mesh_model::ports::is_reserved;

/// The pod's own ports that are not captured, separated by commas.
pub const EXCLUDE_INBOUND_PORTS: &str = "culvert.io/exclude-inbound-ports";
/// Others' ports that are not captured, whatever the address.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "culvert.io/exclude-outbound-ports";
/// Others' addresses that are not captured, whatever the port: ranges (`10.0.0.0/8`) or single ones.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "culvert.io/exclude-outbound-cidrs";

/// Of one list: each becomes two rules in the pod.
const MOST: usize = 16;

/// What the pod excludes. An error names the annotation and what is wrong: then nothing at all is excluded, since a part of what
/// somebody wrote may be more than he meant.
pub fn exclusions(pod: &Pod) -> Result<Exclusions, String> {
    let annotations = pod.metadata.annotations.as_ref();
    let text = |name: &str| annotations.and_then(|all| all.get(name)).map_or("", String::as_str);
    Ok(Exclusions {
        inbound_ports: list(EXCLUDE_INBOUND_PORTS, text(EXCLUDE_INBOUND_PORTS), port)?,
        outbound_ports: list(EXCLUDE_OUTBOUND_PORTS, text(EXCLUDE_OUTBOUND_PORTS), port)?,
        outbound_ranges: list(EXCLUDE_OUTBOUND_CIDRS, text(EXCLUDE_OUTBOUND_CIDRS), range)?,
    })
}

fn list<T: Ord>(name: &str, text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<BTreeSet<T>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let all = items.map(|item| {
        // It goes into Events and logs.
        let shown: String = item.chars().take(60).collect();
        parse(item).map_err(|error| format!("annotation {name}: {shown:?} {error}"))
    });
    let all: BTreeSet<T> = all.collect::<Result<_, _>>()?;
    match all.len() {
        0..=MOST => Ok(all),
        many => Err(format!("annotation {name}: {many} entries, at most {MOST} are taken")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("is no TCP port (1 to 65535)".to_owned()),
        Ok(port) if is_reserved(port) => Err("is a port of the mesh itself".to_owned()),
        Ok(port) => Ok(port),
    }
}

fn range(text: &str) -> Result<IpNetwork, String> {
    let range: IpNetwork = text.parse().map_err(|_| "is neither an address nor a range of addresses".to_owned())?;
    match range.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Err("is IPv4 in IPv6: write the IPv4 range".to_owned()),
        ip if ip != range.network() => {
            Err(format!("has bits behind its prefix; meant may be {}/{}", range.network(), range.prefix()))
        }
        _ => Ok(range),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(inbound: &str, outbound: &str, ranges: &str) -> Result<Exclusions, String> {
        let annotations =
            json!({EXCLUDE_INBOUND_PORTS: inbound, EXCLUDE_OUTBOUND_PORTS: outbound, EXCLUDE_OUTBOUND_CIDRS: ranges});
        exclusions(&serde_json::from_value(json!({"metadata": {"annotations": annotations}})).expect("a pod"))
    }

    #[test]
    fn lists_are_read_and_no_annotation_excludes_nothing() {
        assert!(exclusions(&Pod::default()).expect("nothing").is_empty());
        assert!(of("", " , ", "").expect("nothing").is_empty());
        let some = of("9090, 9091,9090", "5432", "10.0.0.0/8,192.0.2.7, fd00::/8").expect("some");
        let said = "inbound ports 9090, 9091; outbound ports 5432; outbound to 10.0.0.0/8, 192.0.2.7/32, fd00::/8";
        assert_eq!(some.to_string(), said);
    }

    #[test]
    fn one_bad_entry_excludes_nothing_and_is_named_with_its_annotation() {
        let many: String = (1..=17).map(|port| format!("{port},")).collect();
        let table = [
            (of("80,http", "", ""), "exclude-inbound-ports: \"http\" is no TCP port"),
            (of("0", "", ""), "\"0\" is no TCP port"),
            (of("65536", "", ""), "is no TCP port"),
            (of("8080-8090", "", ""), "is no TCP port"),
            (of("15008", "", ""), "is a port of the mesh itself"),
            (of("", "15006", ""), "exclude-outbound-ports: \"15006\" is a port of the mesh itself"),
            (of("", "", "ten"), "exclude-outbound-cidrs: \"ten\" is neither"),
            (of("", "", "10.0.0.1/8"), "meant may be 10.0.0.0/8"),
            (of("", "", "10.0.0.0/33"), "is neither"),
            (of("", "", "::ffff:10.0.0.0/104"), "write the IPv4 range"),
            (of(&many, "", ""), "17 entries, at most 16"),
        ];
        for (read, says) in table {
            let error = read.expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }
}
