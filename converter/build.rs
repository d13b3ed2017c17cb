//! Compiles the client of the control API from `proto/`, without a system protoc.
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let include = "../proto";
    println!("cargo::rerun-if-changed={include}/clipper");
    let descriptors = protox::compile(["clipper/control/v1/control.proto"], [include])?;
    // `--json` prints the messages as they are.
    let derive = "#[derive(serde::Serialize)]";
    tonic_prost_build::configure().build_server(false).message_attribute(".", derive).compile_fds(descriptors)?;
    Ok(())
}
