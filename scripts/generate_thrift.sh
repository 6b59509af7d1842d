#!/usr/bin/env bash
# Makes progressor/rpc/gen from progressor/rpc/idl by Apache Thrift's compiler (Debian: thrift-compiler).
#   scripts/generate_thrift.sh          writes it
#   scripts/generate_thrift.sh --check  fails when what stands there is not what the compiler makes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v thrift >/dev/null || {
  echo "there is no thrift compiler; on Debian and Ubuntu: apt install thrift-compiler" >&2
  exit 1
}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
for idl in progressor/rpc/idl/*.thrift; do
  thrift --strict --gen py -out "$made" "$idl"
done
find "$made" -name '*-remote' -delete # command line clients that nobody needs
case "${1:-}" in
  --check)
    diff -r --exclude __pycache__ "$made/progressor/rpc/gen" progressor/rpc/gen && echo "progressor/rpc/gen is what the compiler makes"
    ;;
  *)
    rm -rf progressor/rpc/gen
    cp -r "$made/progressor/rpc/gen" progressor/rpc/gen
    ;;
esac
