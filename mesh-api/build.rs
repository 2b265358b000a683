//! Makes the gRPC types from `proto/` without system tools: protox compiles, tonic-prost-build writes Rust. Only with feature `grpc`.

#[cfg(not(feature = "grpc"))]
fn main() {}

#[cfg(feature = "grpc")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 6] =
        ["discovery.proto", "workload.proto", "security.proto", "ca.proto", "culvert.proto", "saved.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Maps in key order: the same value always has the same bytes, which resource versions are made from.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
