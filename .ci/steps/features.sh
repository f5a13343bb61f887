# The library builds without dead code under no feature, each one alone and, while they are few, each pair.
names=$(.ci/features)
features=($names)
few=8

check() {
    echo "features: ${1:-none}"
    cargo rustc --quiet --locked --lib --profile check --no-default-features --features "$1" -- -D dead_code -D unused_imports
}

check ""
for ((i = 0; i < ${#features[@]}; i++)); do
    check "${features[i]}"
    ((${#features[@]} <= few)) || continue
    for ((j = i + 1; j < ${#features[@]}; j++)); do
        check "${features[i]},${features[j]}"
    done
done
