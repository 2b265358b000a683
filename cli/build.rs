//! Puts the rendered manifests into the binary, where there are any, so that `culvert install` needs no file.

use std::path::Path;

/// Definitions of policies, and the mesh; in this order, as `kubectl apply` would need them.
const FILES: [&str; 2] = ["crds.yaml", "culvert.yaml"];

fn main() {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let mut expression = String::from("&[");
    for file in FILES {
        let path = manifests.join(file);
        println!("cargo:rerun-if-changed={}", path.display());
        if path.exists() {
            expression.push_str(&format!("include_str!({:?}),", path.display().to_string()));
        }
    }
    expression.push(']');
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for a build script");
    std::fs::write(Path::new(&out).join("manifests.rs"), expression).expect("OUT_DIR can be written to");
}
