# The peers that the tests speak to: real proxies and clients, as Debian packages them.
packages=(curl haproxy libnginx-mod-stream nginx openssl valgrind)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
((${#missing[@]})) || exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
