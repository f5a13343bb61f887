# Every example builds as a user would run it.
cargo build --locked --release --examples --all-features
cargo build --locked --release --package tonic_guarded
