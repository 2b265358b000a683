//! What a sidecar is told: its whole configuration as one JSON text, and the rules of its pod. Pure.

use serde_json::{Value, json};

use super::super::PORTS;
use super::trust;

/// The packet mark of the sidecar's own sockets: its connections are not redirected again.
const MARK: u32 = 0xe0e;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// The suite both ends choose: BoringSSL's first where the CPU has AES. TLS 1.3 suites cannot be configured in Envoy.
pub(super) const CIPHER: &str = "TLS_AES_128_GCM_SHA256";

/// PEM texts.
pub(super) struct Keys {
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

/// The configuration for the report, without keys.
pub(super) fn shown() -> String {
    let none = || "…".to_owned();
    bootstrap(&Keys { authority: none(), certificate: none(), key: none() }).to_string()
}

/// The configuration of a sidecar: both directions for both families. The same in every pod, but for the keys.
pub(super) fn bootstrap(keys: &Keys) -> Value {
    let listeners: Vec<Value> = [("v4", "0.0.0.0"), ("v6", "::")]
        .into_iter()
        .flat_map(|(family, any)| {
            [
                listener(&format!("outbound-{family}"), any, OUTBOUND, "to-peer", None),
                listener(&format!("inbound-{family}"), any, INBOUND, "to-app", Some(tls(keys, "Downstream"))),
            ]
        })
        .collect();
    json!({ "static_resources": {
        "listeners": listeners,
        "clusters": [cluster("to-peer", Some(tls(keys, "Upstream"))), cluster("to-app", None)],
    }})
}

/// The rules of a pod: what goes to a server leaves through the sidecar, what comes for one enters through it.
pub(super) fn redirect() -> String {
    let ports = PORTS.map(|port| port.to_string()).join(", ");
    format!(
        "table inet sidecar {{ \
         chain out {{ type nat hook output priority -100; meta mark {MARK} return; tcp dport {{ {ports} }} redirect to :{OUTBOUND}; }}; \
         chain in {{ type nat hook prerouting priority -100; iifname \"lo\" return; tcp dport {{ {ports} }} redirect to :{INBOUND}; }}; \
         }}"
    )
}

fn listener(name: &str, any: &str, port: u16, cluster: &str, tls: Option<Value>) -> Value {
    let mut chain = json!({ "filters": [{
        "name": "tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
            "access_log": [access_log(name)],
        },
    }]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({
        "name": name,
        // A family of its own each: no address is a mapped one.
        "address": { "socket_address": { "address": any, "port_value": port } },
        "tcp_backlog_size": 4096,
        "listener_filters": [{
            "name": "original_dst",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst" },
        }],
        "filter_chains": [chain],
    })
}

/// A line with what ours has: times, both ends, both names, bytes. Standard output is a file of the lab.
fn access_log(name: &str) -> Value {
    let format = format!(
        "{name} %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN% \
         %START_TIME% %DURATION% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% %BYTES_RECEIVED% \
         %BYTES_SENT% %RESPONSE_FLAGS% %CONNECTION_ID%\n"
    );
    json!({
        "name": "line",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": { "text_format_source": { "inline_string": format } },
        },
    })
}

/// Where the client wanted to go, from a socket that carries the mark.
fn cluster(name: &str, tls: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        // Envoy's limit of 1,024 connections for each upstream would be measured instead of Envoy.
        "circuit_breakers": { "thresholds": [{ "max_connections": 100_000, "max_pending_requests": 100_000 }] },
        // SOL_SOCKET, SO_MARK (asm-generic/socket.h).
        "upstream_bind_config": { "socket_options": [{ "level": 1, "name": 36, "int_value": MARK }] },
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

/// Mutual TLS 1.3. The key exchange is the one our worker prefers, so that neither has the easier handshake.
fn tls(keys: &Keys, direction: &str) -> Value {
    let mut config = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext"),
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519MLKEM768", "X25519"],
            },
            "tls_certificates": [{
                "certificate_chain": { "inline_string": keys.certificate },
                "private_key": { "inline_string": keys.key },
            }],
            "validation_context": {
                "trusted_ca": { "inline_string": keys.authority },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "prefix": trust::PREFIX } }],
            },
        },
    });
    if direction == "Downstream" {
        config["require_client_certificate"] = json!(true);
    }
    json!({ "name": "tls", "typed_config": config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_in_the_report_holds_no_key() {
        let keys = |text: &str| Keys { authority: text.into(), certificate: text.into(), key: text.into() };
        assert!(bootstrap(&keys("SECRET")).to_string().contains("SECRET"), "else this test proves nothing");
        assert!(!shown().contains("BEGIN") && !shown().contains("SECRET"));
    }

    #[test]
    fn both_ends_verify_and_ask_for_a_certificate() {
        let config = shown();
        assert_eq!(config.matches("require_client_certificate").count(), 2, "two inbound listeners");
        assert_eq!(config.matches("match_typed_subject_alt_names").count(), 3, "and one cluster");
        assert_eq!(config.matches("\"tls_minimum_protocol_version\":\"TLSv1_3\"").count(), 3);
    }

    #[test]
    fn the_sidecars_own_connections_are_not_redirected_again() {
        let rules = redirect();
        let exempt = rules.find("meta mark 3598 return").expect("exempt");
        assert!(exempt < rules.find("redirect to :15001").expect("outbound"));
        assert!(rules.contains("tcp dport { 7100, 7101, 7102 } redirect to :15006"));
    }
}
