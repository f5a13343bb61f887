# No warning of rustc or clippy in any target: without features, with each one alone, with all.
lint() {
    echo "clippy $*"
    cargo clippy --quiet --locked --all-targets "$@" -- -D warnings
}

features=$(.ci/features)
lint --no-default-features
for feature in $features; do
    lint --no-default-features --features "$feature"
done
lint --all-features
