# Licences, sources and doubled versions of everything in Cargo.lock.
export PATH="$PATH:$SCRATCH/tools/bin"
if ! cargo deny --version >/dev/null 2>&1; then
    env -u CARGO_TARGET_DIR cargo install --locked --version '^0.20' --root "$SCRATCH/tools" cargo-deny
fi
cargo fetch --locked --quiet
cargo deny --offline check bans licenses sources
echo "advisories are not checked here: the advisory database cannot be fetched offline"
