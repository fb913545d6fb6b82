#!/usr/bin/env bash
# Ends what tests/slurm/start.sh started, each daemon by its own number, and removes its files.
set -uo pipefail
BASE=${VLMFT_SLURM:-/tmp/vlmft-slurm}
export SLURM_CONF="$BASE/slurm.conf"
[ -f "$SLURM_CONF" ] || exit 0

scancel --state=pending --state=running --partition=main,low,high 2>/dev/null
for _ in $(seq 100); do
  [ -z "$(squeue --noheader 2>/dev/null)" ] && break
  sleep 0.2
done

for file in "$BASE"/run/{slurmd-*,slurmctld,slurmdbd,mariadbd,munged}.pid; do
  [ -f "$file" ] || continue
  name=$(basename "$file" .pid) pid=$(cat "$file")
  if [[ "$(readlink "/proc/$pid/exe")" == */"${name%%-*}"* ]]; then
    kill "$pid"
    for _ in $(seq 100); do
      readlink "/proc/$pid/exe" >/dev/null || break
      sleep 0.1
    done
    echo "stopped   $name ($pid)"
  fi
done
rm -rf "$BASE"
