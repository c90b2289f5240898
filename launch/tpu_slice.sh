#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice. Run it on your own machine, with gcloud set up:
#
#   launch/tpu_slice.sh NAME ZONE /mnt/shared/runs/cuhk --config configs/pod.py
#
# NAME is a slice that exists (gcloud compute tpus tpu-vm create NAME --zone ZONE
# --accelerator-type v5litepod-256 --version v2-alpha-tpuv5-lite). The project must lie in ~/dgia_jax
# on every host, installed with: pip install -e ".[tpu]"
# The same command on all hosts is all there is to it: JAX finds the other hosts by itself. Run it
# again after a crash or a preemption, and training goes on from the last checkpoint.
set -euo pipefail

if (($# < 3)); then
  echo "usage: $0 NAME ZONE WORKDIR [flags of dgia_jax.main]" >&2
  exit 2
fi
name=$1 zone=$2 workdir=$3
shift 3

# The work folder has to be one that all hosts see: a mounted bucket (gcsfuse) or a shared disk.
printf -v flags '%q ' --workdir="$workdir" "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/dgia_jax && python3 -m dgia_jax.main $flags"
