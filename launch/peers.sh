#!/usr/bin/env bash
# Start every peer of a run file by itself, as one would on several machines: one `p2p-dml peer`
# each, at the fixed addresses of [transport]. Ctrl-C reaches all of them; the last one out writes
# the report.
#
#   launch/peers.sh run.toml RUN_FOLDER [--set key=value …]
set -euo pipefail
if (($# < 2)); then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
file=$1 out=$2
shift 2
count='import sys; from pathlib import Path; from p2p_dml import config
print(config.load(Path(sys.argv[1]), [a for a in sys.argv[2:] if a != "--set"]).peers)'
peers=$(python -c "$count" "$file" "$@")

trap : INT TERM # the peers get the signal too; wait for them
pids=()
for ((me = 0; me < peers; me++)); do
    p2p-dml peer "$file" --me "$me" --out "$out" "$@" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" && break || code=$?
        ((code > 128)) && continue # the wait was interrupted, not the peer
        status=$code
        break
    done
done
p2p-dml report "$out"
exit "$status"
