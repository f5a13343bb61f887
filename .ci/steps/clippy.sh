# No warning of rustc or clippy in any target: the library without features, with each one alone, with all; the example
# that is a package of its own.
lint() {
    echo "clippy $*"
    cargo clippy --quiet --locked --all-targets "$@" -- -D warnings
}

features=$(.ci/features)
lint --package tonic_guarded
lint --no-default-features
for feature in $features; do
    lint --no-default-features --features "$feature"
done
lint --all-features
