#!/usr/bin/env bash
# Start the peers of a run file as ranks of torchrun: over NCCL where every peer has a GPU, over gloo
# where there is none, else over ZeroMQ (docs/torchrun.md).
#
#   launch/torchrun.sh run.toml [--out RUN_FOLDER] [--set key=value …]
#   launch/torchrun.sh --resume RUN_FOLDER [--set rounds=…]
#   RANKS_PER_PEER=2 launch/torchrun.sh run.toml --set train.parallel=fsdp
#
# On several machines the same on each, with the same files, and the first machine's address:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.7 launch/torchrun.sh run.toml --out runs/x
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.7 launch/torchrun.sh run.toml --out runs/x
set -euo pipefail
if (($# < 1)); then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
hosts=${NNODES:-1}
count='import sys; from pathlib import Path; from p2p_dml import config
words = sys.argv[1:]
given = list(zip(words, words[1:]))
folders = [Path(word) for option, word in given if option == "--resume"]
file = folders[0] / "run.toml" if folders else Path(words[0])
print(config.load(file, [word for option, word in given if option == "--set"]).peers)'
peers=$(python -c "$count" "$@")
if ((peers % hosts)); then
    echo "$peers peers cannot be spread evenly over $hosts machines" >&2
    exit 2
fi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # else torchrun warns; a run has `threads` of its own
exec torchrun \
    --nnodes "$hosts" --node-rank "${NODE_RANK:-0}" \
    --nproc-per-node $((peers / hosts * ${RANKS_PER_PEER:-1})) \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    -m p2p_dml "$@"
