#!/usr/bin/env bash
# Makes the files of a release: for each platform an archive with the broker, its manual pages
# and completions, and a bill of materials (SBOM); Debian packages; and their checksums.
#
#   tools/dist.sh [DIRECTORY [OS/ARCH...]]
#
# The same commit and the same version of Go give the same bytes, in any directory. The version
# is the tag of the commit, or a pseudo-version; the go command puts it into the binary. Needs
# Linux with git and dpkg-deb.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOFLAGS='' GOEXPERIMENT='' GOAMD64=v1 GOARM64=v8.0

source=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$source/dist}
shift $(($# > 0))
platforms=("$@")
((${#platforms[@]})) || platforms=(linux/amd64 linux/arm64 darwin/amd64 darwin/arm64)

fail() {
    echo "dist: $*" >&2
    exit 1
}

[[ $(uname) == Linux ]] || fail "the tools that make reproducible archives are those of Linux: run it there, for example in a container"
command -v dpkg-deb >/dev/null || fail "dpkg-deb is not installed: apt-get install dpkg"
[[ ! -e $out || -z $(ls -A "$out") || -e $out/SHA256SUMS ]] || fail "$out has other files than those of a release: name another directory"

rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$source"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) || fail "$source is no git checkout, so the version is unknown"
export SOURCE_DATE_EPOCH

# build OS ARCH FILE
build() {
    GOOS=$1 GOARCH=$2 go build -trimpath -buildvcs=true -ldflags='-s -w -buildid=' -o "$3" ./cmd/broker
}

# describe writes what is the same on all platforms. The program runs without an environment,
# because flags take their defaults from it.
describe() {
    build "$(go env GOHOSTOS)" "$(go env GOHOSTARCH)" "$work/broker"
    local broker=(env -i "$work/broker")
    version=$("${broker[@]}" version --json | sed 's/.*"version":"v\?\([^"]*\)".*/\1/')
    mkdir -p "$work/common/man" "$work/common/completions"
    "${broker[@]}" man "$work/common/man"
    "${broker[@]}" completion bash >"$work/common/completions/broker.bash"
    "${broker[@]}" completion zsh >"$work/common/completions/_broker"
    "${broker[@]}" completion fish >"$work/common/completions/broker.fish"
    tools/licenses.sh ./cmd/broker "${platforms[@]}" >"$work/common/THIRD_PARTY_LICENSES"
    install -m 0644 LICENSE README.md CHANGELOG.md broker.example.yaml "$work/common"
}

# archive NAME packs the directory $work/NAME.
archive() {
    tar --create --directory="$work" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner "$1" | gzip -9n >"$out/$1.tar.gz"
}

bill_of_materials() {
    GOOS=$1 GOARCH=$2 bin/tools/cyclonedx-gomod app -json -licenses -std -noserial -notimestamp \
        -main cmd/broker -output "$3" . 2>/dev/null || fail "cyclonedx-gomod failed for $1/$2"
}

# debian ARCH BINARY makes a package. deploy/debian has its control file and scripts.
debian() {
    local arch=$1 root=$work/debian-$1 common=$work/common page size
    local doc=$root/usr/share/doc/tokenbroker
    install -D -m 0755 "$2" "$root/usr/bin/broker"
    install -d -m 0755 "$root/etc/tokenbroker" "$root/usr/share/man/man1" "$doc/examples"
    install -D -m 0644 deploy/systemd/sysusers.conf "$root/usr/lib/sysusers.d/tokenbroker.conf"
    install -D -m 0644 <(sed 's|/usr/local/bin/broker|/usr/bin/broker|g' deploy/systemd/tokenbroker.service) \
        "$root/usr/lib/systemd/system/tokenbroker.service"
    install -D -m 0644 "$common/completions/broker.bash" "$root/usr/share/bash-completion/completions/broker"
    install -D -m 0644 "$common/completions/_broker" "$root/usr/share/zsh/vendor-completions/_broker"
    install -D -m 0644 "$common/completions/broker.fish" "$root/usr/share/fish/vendor_completions.d/broker.fish"
    for page in "$common"/man/*; do
        gzip -9n <"$page" >"$root/usr/share/man/man1/${page##*/}.gz"
    done
    install -m 0644 README.md "$doc"
    install -m 0644 broker.example.yaml "$doc/examples/broker.yaml"
    gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
    cat LICENSE "$common/THIRD_PARTY_LICENSES" >"$doc/copyright"

    size=$(find "$root/usr" -type f -printf '%s\n' | awk '{sum += $1} END {print int(sum / 1024) + 1}')
    install -d "$root/DEBIAN"
    install -m 0755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$root/DEBIAN"
    sed -e "s/@VERSION@/$(tr - '~' <<<"$version")/" -e "s/@ARCH@/$arch/" \
        -e "s/@SIZE@/$size/" deploy/debian/control >"$root/DEBIAN/control"
    (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    dpkg-deb --root-owner-group -Zgzip --build "$root" "$out/tokenbroker_${version}_$arch.deb" >/dev/null
}

make --no-print-directory bin/tools/cyclonedx-gomod
describe
for platform in "${platforms[@]}"; do
    os=${platform%/*} arch=${platform#*/}
    name=tokenbroker_${version}_${os}_$arch
    echo "dist: $name"
    cp -r "$work/common" "$work/$name"
    build "$os" "$arch" "$work/$name/broker"
    bill_of_materials "$os" "$arch" "$out/$name.cdx.json"
    if [[ $os == linux ]]; then
        debian "$arch" "$work/$name/broker"
        install -D -m 0644 -t "$work/$name/systemd" deploy/systemd/*
    fi
    archive "$name"
done
(cd "$out" && sha256sum -- * >"$work/SHA256SUMS" && install -m 0644 "$work/SHA256SUMS" .)
echo "dist: $out has the files of $version"
