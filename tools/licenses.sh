#!/usr/bin/env bash
# Prints the licences of Go and of all modules that a program is linked with.
#
#   tools/licenses.sh PACKAGE OS/ARCH...
#
# A module without a file that looks like a licence is an error: its code must not be given to
# others. A module may contain code of others with its own licence: those in the directories
# of linked packages, and above them, are printed too.
set -euo pipefail
export LC_ALL=C

package=$1
shift

# packages prints the module, its version, its directory and the package's for each linked package.
packages() {
    local platform
    for platform; do
        GOOS=${platform%/*} GOARCH=${platform#*/} go list -deps \
            -f '{{$dir := .Dir}}{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}} {{$dir}}{{end}}{{end}}' "$package"
    done | sort -u
}

# licences DIRECTORY... prints the files in a module, whose packages follow, by their paths in it.
licences() {
    local dir=$1 file parent
    shift
    find "$dir" -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) ! -name '*.go' | sort |
        while read -r file; do
            parent=${file%/*}
            [[ $parent == "$dir" || " ${*/%//} " == *" $parent/"* ]] && echo "${file#"$dir"/}"
        done || true
}

# print NAME DIRECTORY PACKAGE...
print() {
    local name=$1 dir=$2 files file
    shift
    files=$(licences "$@")
    if ! grep -qiE '^(licen[cs]e|copying)[^/]*$' <<<"$files"; then
        echo "$name has no licence: there is no file LICENSE or COPYING in $dir" >&2
        return 1
    fi
    while read -r file; do
        printf '\n================================================================================\n%s: %s\n\n' "$name" "$file"
        cat -- "$dir/$file"
    done <<<"$files"
}

listed=$(packages "$@")
modules=$(cut -d' ' -f1-3 <<<"$listed" | sort -u)
printf 'The binary contains code of these modules, under the licences that follow.\n\n%s\n' "Go $(go env GOVERSION)"
cut -d' ' -f1,2 <<<"$modules"
print "Go $(go env GOVERSION)" "$(go env GOROOT)"
while read -r path version dir; do
    mapfile -t dirs < <(awk -v path="$path" '$1 == path {print $4}' <<<"$listed")
    print "$path $version" "$dir" "${dirs[@]}"
done <<<"$modules"
