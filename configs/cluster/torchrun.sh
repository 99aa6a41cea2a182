#!/usr/bin/env bash
# On every node: NODES=2 NODE_RANK=0 MASTER_ADDR=host0 DEVICES=4 configs/cluster/torchrun.sh CONFIG RUN [--KEY VALUE ...]
set -euo pipefail
config=${1:?the configuration}
run=${2:?the name of the run}
shift 2
exec torchrun \
  --nnodes "${NODES:?number of nodes}" \
  --node-rank "${NODE_RANK:?rank of this node, from 0}" \
  --nproc-per-node "${DEVICES:?devices of this node}" \
  --master-addr "${MASTER_ADDR:?name of the node with rank 0}" \
  --master-port "${MASTER_PORT:-29500}" \
  --module -- kd_lightning fit --config "$config" --run "$run" \
  --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" --trainer.strategy ddp "$@"
