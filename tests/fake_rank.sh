#!/bin/bash
# Stands in for `python -m kd_launch.runtime` and kd_launch.attempt in tests: notes its words and variables, then does as it is told.
if [[ $2 == kd_launch.attempt ]]; then # its caretaker
  printf '%s\0' "${@:3}" >"$FAKE_RECORD/$3"
  [[ $3 == decide ]] || exit "${FAKE_WATCH:-0}"
  echo "${FAKE_NEXT:-${FAKE_DONE:+done}}"
  exit
fi
rank=${RANK:-$SLURM_PROCID}
run_dir=$3
trap 'kill "$sleeper"; touch "$FAKE_RECORD/terminated-$rank"; exit 143' TERM
printf '%s\0' "$@" >"$FAKE_RECORD/argv-${FAKE_NUMBER:-$rank}"
env -0 >"$FAKE_RECORD/env-${FAKE_NUMBER:-$rank}"
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
