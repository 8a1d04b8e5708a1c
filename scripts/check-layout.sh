#!/usr/bin/env bash
# Imports run one way (proto <- certs, transport <- client, coord, agent <- cli, bench; emulator <- cli, bench), and no source file
# of ours passes 500 lines.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A allowed=(
  [titan-proto]=""
  [titan-certs]="titan-proto"
  [titan-transport]="titan-proto"
  [titan-client]="titan-proto titan-certs titan-transport"
  [titan-coord]="titan-proto titan-certs titan-transport"
  [titan-agent]="titan-proto titan-certs titan-transport"
  [titan-emulator]=""
  [titan]="titan-proto titan-certs titan-transport titan-client titan-coord titan-agent titan-emulator"
  [titan-bench]="titan-proto titan-certs titan-transport titan-client titan-coord titan-agent titan-emulator"
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
exit "$failed"
