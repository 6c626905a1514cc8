"""Test clusters by hand: `python -m tests.slurm.box up DIR`, then `call DIR -- sbatch ...`, `kd DIR -- submit ...`.

up DIR [options]             start a cluster in DIR; options are a Setup's
down DIR                     end every process of it and remove DIR
call DIR [--cwd D] [--root] -- ARGV...    run a command in it as the ordinary user
kd DIR [--cwd D] -- ARGUMENTS...          the same with kd-launch
shell-env DIR                lines for `eval`, after which Slurm's commands (as the caller) speak to it
kill-node | kill-slurmd | start-node DIR NODE
kill-slurmctld | start-slurmctld | restart-slurmctld DIR
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tests.slurm.box import Box, why_not_here
from tests.slurm.setup import SLURM_DEFAULTS, Setup

ON_NODE = {"kill-node": Box.kill_node, "kill-slurmd": Box.kill_slurmd, "start-node": Box.start_node}
ON_CONTROLLER = {
    "kill-slurmctld": Box.kill_slurmctld,
    "start-slurmctld": Box.start_slurmctld,
    "restart-slurmctld": Box.restart_slurmctld,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("up", "down", "shell-env", "call", "kd", *ON_NODE, *ON_CONTROLLER):
        action = actions.add_parser(name)
        action.add_argument("dir", type=Path)
        if name == "up":
            _add_setup(action)
        elif name in ON_NODE:
            action.add_argument("node")
        elif name in ("call", "kd"):
            action.add_argument("--cwd", type=Path)
            action.add_argument("--root", action="store_true")
            action.add_argument("--timeout", type=float, default=600)
            action.add_argument("argv", nargs="+")
    return parser.parse_args()


def _add_setup(up: argparse.ArgumentParser) -> None:
    up.add_argument("--no-hetjobs", action="store_true", help="a scheduler that refuses heterogeneous jobs")
    up.add_argument("--no-hetsteps", action="store_true", help="disable_hetjob_steps")
    up.add_argument("--preempt", choices=["REQUEUE", "CANCEL"], help="a partition `urgent` that pushes others out")
    up.add_argument("--grace", type=int, default=0, metavar="SECONDS")
    up.add_argument("--job-requeue", type=int, choices=[0, 1], default=1)
    up.add_argument("--enforce", choices=["NO", "ANY", "ALL"], default="ALL", help="EnforcePartLimits")
    up.add_argument("--slurm-defaults", action="store_true", help="KillWait 30, SlurmdTimeout 300, slow requeues")


def setup_of(a: argparse.Namespace) -> Setup:
    return replace(
        SLURM_DEFAULTS if a.slurm_defaults else Setup(),
        hetjobs=not a.no_hetjobs,
        hetjob_steps=not a.no_hetsteps,
        preempt=a.preempt,
        grace_s=a.grace,
        job_requeue=bool(a.job_requeue),
        enforce_limits=a.enforce,
    )


def main() -> int:
    a = parse()
    if a.action == "up":
        problem = why_not_here()
        if problem:
            sys.exit(problem)
        print(Box(a.dir, stays=True).start(setup_of(a)).home)
        return 0
    box = Box.of(a.dir)
    if a.action == "down":
        box.stop()
    elif a.action == "shell-env":
        print(f"export SLURM_CONF={box.conf}")
    elif a.action in ("call", "kd"):
        argv = a.argv if a.action == "call" else [sys.executable, "-m", "kd_launch.cli", *a.argv]
        return box.popen(*argv, cwd=a.cwd, as_root=a.root, stdin=None, stdout=None, stderr=None).wait(a.timeout)
    elif a.action in ON_NODE:
        ON_NODE[a.action](box, a.node)
    else:
        ON_CONTROLLER[a.action](box)
    return 0
