//! Makes Rust of the .proto file.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let (file, folder) = (Path::new("proto/talk.proto"), Path::new("proto"));
    println!("cargo:rerun-if-changed={}", folder.display());
    let parsed = protox::compile([file], [folder])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .compile_fds(parsed)?;
    Ok(())
}
