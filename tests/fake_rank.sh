#!/bin/bash
# Stands in for `python -m kd_launch.runtime` in tests: notes its words and variables, then does as it is told.
rank=${RANK:-$SLURM_PROCID}
run_dir=$3
trap 'kill "$sleeper"; touch "$FAKE_RECORD/terminated-$rank"; exit 143' TERM
printf '%s\0' "$@" >"$FAKE_RECORD/argv-$rank"
env -0 >"$FAKE_RECORD/env-$rank"
printf 'role %s\nno newline at the end' "${@: -1}"
if [[ " $FAKE_SLEEPS " == *" $rank "* ]]; then
  sleep 60 &
  sleeper=$!
  touch "$FAKE_RECORD/asleep-$rank"
  wait
fi
if [[ $rank == "$FAKE_FAILS" ]]; then
  for other in $FAKE_SLEEPS; do
    until [[ -e $FAKE_RECORD/asleep-$other ]]; do sleep 0.02; done
  done
  exit 7
fi
if [[ -n $FAKE_DONE ]]; then
  touch "$run_dir/attempts/attempt-$KD_LAUNCH_ATTEMPT/done.json"
fi
