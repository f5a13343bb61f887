# The README's own test command, taken from its text, so that the two cannot drift apart.
commands=$(awk '/^```/ { shell = /^```sh$/ && !shell; next } shell && /^cargo test/' README.md)
if [[ $(grep -c . <<<"$commands") != 1 ]]; then
    echo "README.md must show exactly one line 'cargo test ...' in its sh blocks; found: ${commands:-none}" >&2
    exit 1
fi
echo "\$ $commands"
bash -euo pipefail -c "$commands"
