//! Where things are on the API server: paths made of names that came from outside, which cannot leave their place.

use mesh_api::manifests::Kind;

/// Where the objects of a kind are, all namespaces.
pub(crate) fn collection(kind: Kind) -> String {
    let (version, plural) = kind.resource();
    match version.contains('/') {
        true => format!("/apis/{version}/{plural}"),
        false => format!("/api/{version}/{plural}"),
    }
}

/// Where one object is. The names are ones that Kubernetes allows.
pub fn object(kind: Kind, namespace: &str, name: &str) -> String {
    let (version, plural) = kind.resource();
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    match kind.is_of_cluster() {
        true => format!("{root}/{plural}/{}", escape(name)),
        false => format!("{root}/namespaces/{}/{plural}/{}", escape(namespace), escape(name)),
    }
}

/// Percent-encodes all but what is safe anywhere in a URI.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => escaped.push(byte.into()),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(object(Kind::Pod, "shop", "cart"), "/api/v1/namespaces/shop/pods/cart");
        assert_eq!(object(Kind::Namespace, "", "a/../b?c"), "/api/v1/namespaces/a%2F..%2Fb%3Fc");
        assert_eq!(collection(Kind::EndpointSlice), "/apis/discovery.k8s.io/v1/endpointslices");
    }
}
