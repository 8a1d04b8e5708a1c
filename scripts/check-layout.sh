#!/usr/bin/env bash
# Imports run one way (files, proto <- certs, openai, transport <- client, coord, agent <- proxy <- cli, bench; emulator <- cli, bench), no source file of ours
# passes 500 lines, and a module's file is name.rs beside name/.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A allowed=(
  [titan-files]=""
  [titan-proto]=""
  [titan-certs]="titan-files titan-proto"
  [titan-openai]="titan-proto"
  [titan-transport]="titan-files titan-proto"
  [titan-client]="titan-proto titan-certs titan-transport"
  [titan-proxy]="titan-proto titan-transport titan-client titan-openai"
  [titan-coord]="titan-files titan-proto titan-certs titan-transport titan-openai"
  [titan-agent]="titan-files titan-proto titan-certs titan-transport titan-openai"
  [titan-emulator]=""
  [titan]="titan-files titan-proto titan-certs titan-transport titan-client titan-coord titan-agent titan-openai titan-proxy titan-emulator"
  [titan-bench]="titan-files titan-proto titan-certs titan-transport titan-client titan-coord titan-agent titan-openai titan-proxy titan-emulator"
)
failed=0
for crate in "${!allowed[@]}"; do
  found=$(cargo tree --locked --offline --quiet -p "$crate" --depth 1 --edges normal,build,dev --prefix none --format '{p}' |
    awk 'NR > 1 {print $1}' | grep -E '^titan(-|$)' | sort -u || true)
  for import in $found; do
    case " ${allowed[$crate]} " in
      *" $import "*) ;;
      *) echo "$crate must not import $import"; failed=1 ;;
    esac
  done
done
while read -r lines file; do
  if [ "$file" != total ] && [ "$lines" -gt 500 ]; then echo "$file has $lines lines; the limit is 500"; failed=1; fi
done < <(git ls-files '*.rs' ':!vendor' | xargs wc -l)
# What several test programs share is tests/NAME/mod.rs all the same: cargo takes tests/NAME.rs for a test program.
while read -r file; do
  echo "$file: name it after its module, ${file%/mod.rs}.rs"
  failed=1
done < <(git ls-files 'mod.rs' '*/mod.rs' ':!vendor' | grep -vE '^[a-z]+/tests/[a-z_]+/mod\.rs$')
exit "$failed"
