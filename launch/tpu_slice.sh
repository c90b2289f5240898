#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice. Run it on your own machine, with gcloud set up:
#
#   launch/tpu_slice.sh NAME ZONE gs://BUCKET/runs/cuhk --config configs/pod.py \
#       --config.dataset.data_dir=gs://BUCKET/data
#
# NAME is a slice that exists (gcloud compute tpus tpu-vm create NAME --zone ZONE
# --accelerator-type v5litepod-256 --version v2-alpha-tpuv5-lite). Every host needs Python
# 3.11 or later and the project in ~/dgia_jax, in a virtual environment:
#
#   cd ~/dgia_jax && python3 -m venv .venv && .venv/bin/pip install -e ".[tpu,gcs]"
#
# PYTHON names another interpreter of the hosts.
# All hosts run the same command, and JAX finds the other hosts. Run it again after a crash or a
# preemption, and training continues from the last checkpoint.
set -euo pipefail

if (($# < 3)); then
  echo "usage: $0 NAME ZONE WORKDIR [flags of dgia_jax.main]" >&2
  exit 2
fi
name=$1 zone=$2 workdir=$3
shift 3

# All hosts must share the working directory: a folder in a bucket, or a shared disk.
printf -v flags '%q ' --workdir="$workdir" "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/dgia_jax && ${PYTHON:-.venv/bin/python} -m dgia_jax.main $flags"
