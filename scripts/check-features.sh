#!/usr/bin/env bash
# What is compiled for the workspace, tests included, serves every selection of packages that has engines in it: no dependency has other
# features there. Without this, `cargo test -p titan` after a build of the workspace compiles mistral.rs again, for ten minutes, and so
# do the README's two commands after each other. The libraries below the engines (transport, client, coord …) are leaner when they are
# selected alone, which is what a program that uses them wants; their tests find what is compiled with
# `cargo test -p titan-transport -p titan`.
# And `titan` without its default features has neither mistral.rs nor candle nor tokenizers in it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Every dependency of a selection with its features, one to a line; members of the workspace left out.
dependencies() { # EDGES SELECTION...
  local edges=$1
  shift
  cargo tree --locked --quiet "$@" --edges "$edges" --prefix none --no-dedupe --format '{p} [{f}]' |
    sed -E 's/ \(\*\)//; /^titan(-[a-z]+)? v/d; /^$/d' | sort -u
}
with_tests=normal,build,dev without_tests=normal,build

dependencies "$with_tests" --workspace >"$work/workspace"
grep -q '^mistralrs-core v' "$work/workspace" || { echo "check-features: cargo tree names no mistralrs-core: is this script out of date?"; exit 1; }
failed=0
compare() { # EDGES SELECTION...
  local crate version features
  dependencies "$@" >"$work/selection"
  comm -13 "$work/workspace" "$work/selection" >"$work/different"
  [ -s "$work/different" ] || return 0
  failed=1
  echo "check-features: with \`${*:2}\` ($1) these have other features than in the workspace, and are compiled again with all that needs them:"
  while read -r crate version features; do
    echo "  $crate $version $features, in the workspace $(grep "^$crate $version " "$work/workspace" | sed 's/^[^[]*//' | paste -sd ' ')"
  done <"$work/different"
  echo "  State the missing features in Cargo.toml, or in agent/Cargo.toml where only other members ask for them."
}
compare "$without_tests" --workspace
selections=0
for crate in $(cargo metadata --locked --no-deps --format-version 1 | python3 -c 'import json, sys; print(*(package["name"] for package in json.load(sys.stdin)["packages"]))'); do
  dependencies "$without_tests" -p "$crate" >"$work/alone"
  if grep -q '^mistralrs-core v' "$work/alone"; then
    compare "$with_tests" -p "$crate"
    compare "$without_tests" -p "$crate"
  else
    compare "$with_tests" -p "$crate" -p titan
  fi
  selections=$((selections + 1))
done

dependencies "$without_tests" -p titan --no-default-features >"$work/client"
if grep -E '^(mistralrs|candle|tokenizers)' "$work/client"; then
  echo "check-features: titan without its default features must not depend on these"
  failed=1
fi
[ "$failed" = 0 ] && echo "the same features in $selections selections"
exit "$failed"
