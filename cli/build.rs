//! Puts the rendered manifest into the binary, where there is one, so that `culvert install` needs no file.

use std::path::Path;

fn main() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/culvert.yaml");
    println!("cargo:rerun-if-changed={}", manifest.display());
    let expression = match manifest.exists() {
        true => format!("Some(include_str!({:?}))", manifest.display().to_string()),
        false => "None".to_owned(),
    };
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for a build script");
    std::fs::write(Path::new(&out).join("manifest.rs"), expression).expect("OUT_DIR can be written to");
}
