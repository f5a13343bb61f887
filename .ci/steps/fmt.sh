# The formatter agrees with every file.
cargo fmt --all --check
