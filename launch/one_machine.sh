#!/usr/bin/env bash
# Trains on all GPUs of one machine.
#
#   launch/one_machine.sh --config configs/cuhk_pedes.py --workdir runs/cuhk          one process
#   PROCESSES=8 launch/one_machine.sh --config configs/cuhk_pedes.py --workdir runs/cuhk
#
# One process that drives all GPUs is the simplest and gives the same numbers. With PROCESSES=N every
# process has its own GPU (process i sees GPU i) and its own input pipeline, which helps when decoding
# in one process cannot keep up. If one of them dies the others end, too; run it again to go on.
set -euo pipefail

processes=${PROCESSES:-1}
if ((processes == 1)); then
  exec python3 -m dgia_jax.main "$@"
fi

port=${PORT:-$((20000 + RANDOM % 20000))}
children=()
stop() { kill -TERM "${children[@]}" 2>/dev/null || true; }
trap stop TERM INT
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES=$i python3 -m dgia_jax.main "$@" \
    --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
  children+=($!)
done

code=0
for child in "${children[@]}"; do
  # A signal interrupts `wait` before its child has ended: ask again until it has.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && true; done
  wait "$child" || code=$?
done
exit "$code"
