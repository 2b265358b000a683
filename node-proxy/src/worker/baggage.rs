//! Who a workload is, in the form of ambient's `baggage` header: for the far end's logs and metrics, nothing is decided by it.

use std::fmt::Write as _;

use mesh_model::{PodName, Telemetry};

/// Of a pod of this cluster, and what its record calls it.
pub fn of(cluster: &str, pod: &PodName, telemetry: Option<&Telemetry>) -> String {
    let mut baggage = String::new();
    let mut add = |key: &str, value: &str| {
        if is_plain(value) {
            let comma = if baggage.is_empty() { "" } else { "," };
            let _ = write!(baggage, "{comma}{key}={value}");
        }
    };
    add("k8s.cluster.name", cluster);
    add("k8s.namespace.name", &pod.namespace);
    add("k8s.pod.name", &pod.name);
    if let Some(Telemetry { canonical_name, canonical_revision, region, zone, .. }) = telemetry {
        add("service.name", canonical_name);
        add("service.version", canonical_revision);
        add("cloud.region", region);
        add("cloud.availability_zone", zone);
    }
    baggage
}

/// Something that needs no encoding. Names of Kubernetes and values of labels are; what else a control plane may say is left out.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baggage_says_what_the_record_calls_a_workload_and_nothing_that_would_need_encoding() {
        let pod = PodName { namespace: "shop".into(), name: "cart-7d9".into() };
        let short = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=cart-7d9";
        assert_eq!(of("Kubernetes", &pod, None), short);
        let telemetry = Telemetry {
            workload_name: "cart-deployment".into(),
            canonical_name: "cart".into(),
            canonical_revision: "v1".into(),
            region: "north".into(),
            zone: "north-1".into(),
            subzone: String::new(),
        };
        let long =
            format!("{short},service.name=cart,service.version=v1,cloud.region=north,cloud.availability_zone=north-1");
        assert_eq!(of("Kubernetes", &pod, Some(&telemetry)), long);
        let odd = Telemetry {
            canonical_name: "cart,k8s.pod.name=other".into(),
            canonical_revision: "\r\n".into(),
            region: String::new(),
            zone: "é".into(),
            ..telemetry
        };
        assert_eq!(of("Kubernetes", &pod, Some(&odd)), short);
    }
}
