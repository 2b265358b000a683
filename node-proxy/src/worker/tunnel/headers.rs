//! The headers of a CONNECT and of its answer: made and parsed here, as text in, values out.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use mesh_model::Reason;
use mesh_model::policy::PolicyKey;

use super::{ConnectRequest, OpenError};

/// Carries our reason for a refusal; other meshes ignore it.
pub(super) const REASON: HeaderName = HeaderName::from_static("culvert-reason");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest header value that is passed on to logs.
const LONGEST: usize = 4 << 10;

/// A request that is no CONNECT to an address with a port. What it said instead, its first characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConnect {
    /// Another method.
    #[error("method {0:?} is not CONNECT")]
    Method(String),
    /// A name, or no port.
    #[error("authority {0:?} is not an address and port")]
    Authority(String),
}

/// The CONNECT of RFC 9113, 8.5: `:method` and `:authority` only.
pub(super) fn connect(request: &ConnectRequest) -> Result<Request<()>, OpenError> {
    let unfit = |what| OpenError::Request { authority: request.authority, what };
    let authority = request.authority.to_string();
    let uri = Uri::builder().authority(authority.as_str()).build().map_err(|_| unfit("the authority"))?;
    let mut out = Request::new(());
    *out.method_mut() = Method::CONNECT;
    *out.uri_mut() = uri;
    *out.version_mut() = Version::HTTP_2;
    let headers = out.headers_mut();
    let mut forwarded = format!("for=\"{}\"", request.forwarded_for);
    if let Some(host) = &request.service_host {
        forwarded.push_str(";host=");
        forwarded.push_str(host);
    }
    headers.insert(FORWARDED, value(&forwarded).ok_or_else(|| unfit("the service host"))?);
    headers.insert(TRACEPARENT, value(&request.traceparent).ok_or_else(|| unfit("the trace id"))?);
    if !request.baggage.is_empty() {
        headers.insert(BAGGAGE, value(&request.baggage).ok_or_else(|| unfit("the baggage"))?);
    }
    Ok(out)
}

/// What the far side said to a CONNECT when it was not 200.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap) -> (Reason, Option<String>) {
    let text = headers.get(REASON).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    let named = parts.next().and_then(|name| name.parse::<Reason>().ok());
    let policy = parts.find_map(|part| part.strip_prefix("policy=")).filter(|name| is_policy_name(name));
    let reason = named.unwrap_or(match status {
        StatusCode::UNAUTHORIZED => Reason::PolicyDenied,
        _ => Reason::TunnelRefused,
    });
    (reason, policy.map(str::to_owned))
}

/// Answer 200, with the destination workload's baggage.
pub(super) fn accepted(baggage: Option<&str>) -> Response<()> {
    let mut out = Response::new(());
    if let Some(value) = baggage.filter(|text| !text.is_empty()).and_then(value) {
        out.headers_mut().insert(BAGGAGE, value);
    }
    out
}

/// Answer that refuses.
pub(super) fn refused(reason: Reason, policy: Option<&PolicyKey>) -> Response<()> {
    let mut out = Response::new(());
    *out.status_mut() = status_of(reason);
    let text = match policy {
        Some(policy) => format!("{reason}; policy={policy}"),
        None => reason.to_string(),
    };
    // A policy name that cannot be a header value does not take the reason along.
    let value = value(&text).unwrap_or_else(|| HeaderValue::from_static(reason.as_str()));
    out.headers_mut().insert(REASON, value);
    out
}

/// 400 for what the caller asked wrongly, 401 for what is not allowed, 503 for the rest (as ztunnel groups them).
pub(super) fn status_of(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadRequest | Reason::WrongDestination | Reason::ReservedPort | Reason::Malformed => {
            StatusCode::BAD_REQUEST
        }
        Reason::PolicyDenied | Reason::PolicyUnknown | Reason::PolicyChanged | Reason::PeerUntrusted => {
            StatusCode::UNAUTHORIZED
        }
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Where a CONNECT wants to go, by its authority.
pub(super) fn authority(method: &Method, uri: &Uri) -> Result<SocketAddr, BadConnect> {
    let first = |text: &str| text.chars().take(120).collect();
    if method != Method::CONNECT {
        return Err(BadConnect::Method(first(method.as_str())));
    }
    let text = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    text.parse::<SocketAddr>().map_err(|_| BadConnect::Authority(first(text)))
}

/// `traceparent` if it has the form of W3C Trace Context, 3.2.2; anything else is as if it were not there.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let hex =
        |part: &str, len| part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = text.split('-');
    let fine = hex(parts.next()?, 2) && hex(parts.next()?, 32) && hex(parts.next()?, 16) && hex(parts.next()?, 2);
    (fine && parts.next().is_none()).then(|| text.to_owned())
}

/// `forwarded`, for the log only: nothing is decided by it.
pub(super) fn forwarded(headers: &HeaderMap) -> Option<String> {
    headers.get(FORWARDED)?.to_str().ok().filter(|text| text.len() <= LONGEST).map(str::to_owned)
}

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// `<namespace>/<name>` in Kubernetes' characters: the text goes into our log, so nothing else may come through.
fn is_policy_name(text: &str) -> bool {
    text.len() <= 320
        && text.split_once('/').is_some_and(|(namespace, name)| {
            let fine = |part: &str| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            };
            fine(namespace) && fine(name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(reason: Reason, policy: Option<&PolicyKey>) -> (Reason, Option<String>) {
        let answer = refused(reason, policy);
        refusal(answer.status(), answer.headers())
    }

    #[test]
    fn every_reason_travels_with_and_without_a_policy() {
        let policy = PolicyKey { namespace: "shop".into(), name: "deny-all".into() };
        for reason in Reason::ALL {
            assert_eq!(round(*reason, None), (*reason, None));
            assert_eq!(round(*reason, Some(&policy)), (*reason, Some("shop/deny-all".into())));
        }
    }

    #[test]
    fn a_refusal_of_another_mesh_keeps_what_its_status_means() {
        for (status, value, want) in [
            (401, None, Reason::PolicyDenied),
            (503, None, Reason::TunnelRefused),
            (400, None, Reason::TunnelRefused),
            (503, Some("Nonsense"), Reason::TunnelRefused),
            (401, Some("policydenied"), Reason::PolicyDenied),
            (503, Some("PolicyUnknown;  policy=a/b"), Reason::PolicyUnknown),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(REASON, HeaderValue::from_static(value));
            }
            assert_eq!(refusal(StatusCode::from_u16(status).expect("status"), &headers).0, want, "{status} {value:?}");
        }
    }

    #[test]
    fn a_policy_name_that_could_spoil_a_log_line_is_dropped() {
        for name in ["policy=", "policy=a", "policy=a/b c", "policy=a/b\"x", "policy=/b", "policy=a/b/c"] {
            let mut headers = HeaderMap::new();
            headers.insert(REASON, HeaderValue::from_str(&format!("PolicyDenied; {name}")).expect("header"));
            assert_eq!(refusal(StatusCode::UNAUTHORIZED, &headers), (Reason::PolicyDenied, None), "{name}");
        }
    }

    #[test]
    fn an_authority_is_an_address_with_a_port_or_an_error() {
        for (text, want) in [
            ("198.18.1.2:80", true),
            ("[fd77::2]:80", true),
            ("cart.shop:80", false),
            ("198.18.1.2", false),
            ("[fd77::2]", false),
            ("198.18.1.2:0x50", false),
            ("198.18.1.2:99999", false),
        ] {
            let parsed = Uri::builder().authority(text).build().map(|uri| authority(&Method::CONNECT, &uri).is_ok());
            assert_eq!(parsed.unwrap_or(false), want, "{text}");
        }
    }

    #[test]
    fn a_traceparent_out_of_form_counts_as_none() {
        let good = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";
        for (text, want) in [
            (good, true),
            ("00-0123456789ABCDEF0123456789abcdef-0123456789abcdef-00", false),
            ("00-0123-0123456789abcdef-00", false),
            ("00-0123456789abcdef0123456789abcdef-0123456789abcdef-00-x", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(text));
            assert_eq!(traceparent(&headers).is_some(), want, "{text}");
        }
    }

    #[test]
    fn a_connect_has_the_headers_of_ambient() {
        let request = ConnectRequest {
            authority: "[fd77::2]:80".parse().expect("address"),
            traceparent: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00".into(),
            forwarded_for: "[fd77::1]:4000".parse().expect("address"),
            service_host: Some("cart.shop.svc.cluster.local".into()),
            baggage: "k8s.namespace.name=shop".into(),
        };
        let out = connect(&request).expect("request");
        assert_eq!(out.uri().to_string(), "[fd77::2]:80");
        assert_eq!(out.headers()["forwarded"], "for=\"[fd77::1]:4000\";host=cart.shop.svc.cluster.local");
        assert_eq!(out.headers()["baggage"], "k8s.namespace.name=shop");
    }
}
