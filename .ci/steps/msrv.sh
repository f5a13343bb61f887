# The library builds on the oldest compiler that Cargo.toml promises. Debian bookworm packages that compiler,
# beside newer ones; its files are unpacked into a folder, nothing is installed.
promised=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
root="$SCRATCH/msrv/$promised"
rust=(rustc-web cargo-web libstd-rust-web-dev "libstd-rust-web-$promised")
export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" RUSTC="$root/usr/bin/rustc"

if [[ $("$RUSTC" --version 2>&1) != "rustc $promised."* ]]; then
    rm -rf "$root" && mkdir -p "$root/debs" && cd "$root/debs"
    download() {
        apt-get download -qq -o APT::Sandbox::User=root "${rust[@]/%/=$promised.*}" libllvm19 libhttp-parser2.9 libpcre3
    }
    download || { apt-get update -qq && download; }
    for deb in *.deb; do dpkg -x "$deb" "$root"; done
    rm -r "$root/debs" && cd "$OLDPWD"
fi

"$RUSTC" --version
"$root/usr/bin/cargo" check --locked --all-features --target-dir "$SCRATCH/msrv/target"
