#!/usr/bin/env bash
# Generates the stubs of the broker's API in DIR: stubs.sh DIR. It needs grpcurl, protoc and
# grpc_python_plugin (Debian: protobuf-compiler, protobuf-compiler-grpc). protoc reads
# descriptors, because older versions do not know all options in the sources.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
grpcurl -import-path proto -proto tokenbroker/v1/tokenbroker.proto -protoset-out "$dir/tokenbroker.binpb" describe >/dev/null
protoc --descriptor_set_in="$dir/tokenbroker.binpb" \
    --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" \
    --python_out="$dir" --grpc_python_out="$dir" tokenbroker/v1/tokenbroker.proto
