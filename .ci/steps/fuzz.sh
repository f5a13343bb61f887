# What strangers send, for a while each: no panic, no read past the end. The sanitizer is an unstable switch.
export RUSTC_BOOTSTRAP=1 PATH="$PATH:$SCRATCH/tools/bin"
if ! cargo fuzz --version >/dev/null 2>&1; then
    env -u CARGO_TARGET_DIR cargo install --locked --version '^0.13' --root "$SCRATCH/tools" cargo-fuzz
fi
seconds=20
for target in $(cargo fuzz list); do
    cargo fuzz run --target-dir "$SCRATCH/fuzz" "$target" -- -max_total_time=$seconds -rss_limit_mb=1024
done
