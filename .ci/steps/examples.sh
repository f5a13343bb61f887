# Every example builds as a user would run it.
cargo build --locked --release --examples --all-features
