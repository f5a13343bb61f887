# The side-by-side benches are a package of their own, with the rivals as dependencies.
if [[ ! -f benches/rivals/Cargo.toml ]]; then
    echo "no package in benches/rivals: nothing to check"
    exit 0
fi
cargo check --locked --all-targets --manifest-path benches/rivals/Cargo.toml --target-dir "$SCRATCH/rivals"
