#!/usr/bin/env bash
# Trains on all GPUs of one machine.
#
#   launch/one_machine.sh --config configs/cuhk_pedes.py --workdir runs/cuhk          one process
#   PROCESSES=8 launch/one_machine.sh --config configs/cuhk_pedes.py --workdir runs/cuhk
#
# One process that drives all GPUs is the simplest choice and gives the same numbers. With PROCESSES=N
# each process has its own GPU (process i uses GPU i) and its own input pipeline, which helps if
# decoding in one process is too slow. If one of them dies, the others end too; run the same command
# again to continue. Ctrl-C stops after the current step; a second Ctrl-C ends all processes at once.
set -euo pipefail

processes=${PROCESSES:-1}
if ((processes == 1)); then
  exec python3 -m dgia_jax.main "$@"
fi

port=${PORT:-$((20000 + RANDOM % 20000))}
children=()
signal=TERM
stop() {
  kill "-$signal" "${children[@]}" 2>/dev/null || true
  signal=KILL # complete checkpoints survive this
}
trap stop TERM INT
for ((i = 0; i < processes; i++)); do
  CUDA_VISIBLE_DEVICES=$i python3 -m dgia_jax.main "$@" \
    --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
  children+=($!)
done

code=0
for child in "${children[@]}"; do
  # A signal interrupts `wait` before its child has ended, so wait again.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && true; done
  wait "$child" || code=$?
done
exit "$code"
