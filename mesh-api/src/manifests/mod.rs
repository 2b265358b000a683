//! Kubernetes manifests.
