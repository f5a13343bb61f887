# The peers that the tests speak to: real proxies and clients, as Debian packages them, and the gRPC client of Google,
# as PyPI does.
packages=(curl haproxy libnginx-mod-stream nghttp2-client nginx openssl python3 python3-pip slowhttptest valgrind wrk)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

grpcio=1.85.1
if [[ $(PYTHONPATH="$SCRATCH/python" python3 -c 'import grpc; print(grpc.__version__)' 2>&1) != "$grpcio" ]]; then
    rm -rf "$SCRATCH/python"
    python3 -m pip install --quiet --root-user-action=ignore --target "$SCRATCH/python" "grpcio==$grpcio"
fi
