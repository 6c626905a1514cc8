#!/bin/bash
# kd-launch run chat-20260131-235959: starts on this machine the ranks that `kd-launch submit` would start.
set -eo pipefail # no -u: module and conda scripts read unset variables
export PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=2

# Every start of this script, by a requeue too, is an attempt: the first number whose folder is new.
run_dir=/shared/runs/chat-20260131-235959
attempt=1
mkdir -p "$run_dir/attempts"
until mkdir "$run_dir/attempts/attempt-$attempt" 2>/dev/null; do
  [[ -d $run_dir/attempts/attempt-$attempt ]] || mkdir "$run_dir/attempts/attempt-$attempt" # says why, and ends here
  attempt=$((attempt + 1))
done
export KD_LAUNCH_ATTEMPT="$attempt"
logs=$run_dir/logs/attempt-$attempt
mkdir -p "$logs"
export WORLD_SIZE=2 LOCAL_WORLD_SIZE=2

# However this script ends, no rank outlives it: TERM, and KILL for what is left after 10 s.
# shellcheck disable=SC2329 # the trap calls it
stop() {
  jobs -pr | xargs -r kill || true
  for _ in {1..100}; do
    [[ -n $(jobs -pr) ]] || return 0
    sleep 0.1
  done
  jobs -pr | xargs -r kill -KILL || true
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# start RANK LOG COMMAND...: in the background, each line prefixed with the rank
start() {
  RANK=$1 LOCAL_RANK=$1 "${@:3}" 2>&1 | while IFS= read -r line || [[ -n $line ]]; do
    printf '%s: %s\n' "$1" "$line" || true # a full disk loses lines of a log, not the run
  done >>"$logs/$2.log" &
}
for ((rank = 0; rank < 2; rank++)); do
  start "$rank" student /shared/venv/bin/python -m kd_launch.runtime /shared/runs/chat-20260131-235959 --role both
done

# The first rank that fails ends the others, which would wait for it for ever.
status=0
for ((left = WORLD_SIZE; left > 0 && status == 0; left--)); do
  wait -n || status=$?
done
# Of ranks that end in the same moment bash may forget one, and then says 127: the run's own record tells.
[[ $status -ne 127 || -n $(jobs -pr) ]] || status=0

if [[ $status -eq 0 && ! -f $run_dir/attempts/attempt-$attempt/done.json ]]; then
  echo "kd-launch: every rank has left, but attempt $attempt wrote no done.json: the run is not done" >&2
  status=1
fi
exit "$status"
