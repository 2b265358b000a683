//! What is spoken at a Service's port, as Istio reads it: `appProtocol`, else the first part of the port's name.

use mesh_model::AppProtocol;

/// From the two.
pub(super) fn of(app_protocol: Option<&str>, port_name: Option<&str>) -> AppProtocol {
    match app_protocol.filter(|said| !said.is_empty()) {
        Some(said) => named(said),
        None => named(port_name.unwrap_or_default().split('-').next().unwrap_or_default()),
    }
}

fn named(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_says_what_is_spoken_there_and_its_name_if_it_does_not() {
        for (said, name, spoken) in [
            (Some("http"), Some("tcp"), AppProtocol::Http11),
            (Some("kubernetes.io/h2c"), None, AppProtocol::Http2),
            (Some("example.com/own"), Some("http"), AppProtocol::Unknown),
            (None, Some("http"), AppProtocol::Http11),
            (None, Some("http2-web"), AppProtocol::Http2),
            (Some(""), Some("gRPC-api"), AppProtocol::Grpc),
            (None, Some("https"), AppProtocol::Tls),
            (None, Some("web"), AppProtocol::Unknown),
            (None, None, AppProtocol::Unknown),
        ] {
            assert_eq!(of(said, name), spoken, "{said:?} {name:?}");
        }
    }
}
