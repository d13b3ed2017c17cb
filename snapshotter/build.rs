//! Compiles containerd's snapshots service and the control API from `proto/`, without a system protoc.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let include = "../proto";
    let files = ["containerd/services/snapshots/v1/snapshots.proto", "clipper/control/v1/control.proto"];
    println!("cargo::rerun-if-changed={include}");
    let descriptors = protox::compile(files, [include])?;
    // Field order must not depend on a hash: requests and records are compared in tests.
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
