# The documentation as docs.rs builds it, feature badges included. The compiler's unstable switch would make
# build scripts run anew in every other step, hence a target folder of its own.
export RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS="--cfg docsrs -D warnings"
cargo doc --locked --all-features --no-deps --target-dir "$SCRATCH/docs"
