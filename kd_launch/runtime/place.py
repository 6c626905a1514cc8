"""Environment + layout -> this process's place in the plan's world, or a refusal of what the plan does not have."""

from dataclasses import replace

from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role, unsupported_by_runtime
from kd_launch.runtime.environment import Environment


def take_place(environment: Environment, layout: Layout, role: Role) -> Environment:
    """The environment with the rank and the world size of the plan's one world.

    Raises:
        SpecError: wrong number of ranks, wrong role for this rank, or a layout that this version does not run.
    """
    if unsupported := unsupported_by_runtime(layout):
        raise SpecError(
            f"plan.json: this version's runtime does not run {unsupported}; submit again to get another plan"
        )
    if environment.launcher == "slurm" and layout.launch == "two_steps" and not layout.colocated:
        return _after_the_other_step(environment, layout, role)
    if environment.world_size != layout.world_size:
        raise SpecError(f"{environment.world_size} ranks were started but the plan has {layout.world_size}")
    _check_het_groups(environment, layout)
    planned = layout.role_of(environment.rank)
    if role is not planned:
        raise SpecError(f"rank {environment.rank} was started as {role} but the plan makes it {planned}")
    return environment


def _after_the_other_step(environment: Environment, layout: Layout, role: Role) -> Environment:
    """Each of two steps counts its own ranks from 0: the student's follow the teacher's."""
    ranks = layout.teacher_ranks if role is Role.TEACHER else layout.student_ranks
    if role is Role.BOTH:
        raise SpecError("a rank was started as both, but the plan's teacher and student are two job steps")
    if environment.world_size != len(ranks):
        raise SpecError(
            f"the {role}'s job step has {environment.world_size} ranks (SLURM_NTASKS) but the plan has {len(ranks)} "
            f"of its role"
        )
    return replace(environment, rank=ranks[environment.rank], world_size=layout.world_size)


def _check_het_groups(environment: Environment, layout: Layout) -> None:
    """Nothing tells a task its component; where Slurm tells how many ranks each has, the plan must have as many."""
    planned = (len(layout.teacher_ranks), len(layout.student_ranks))
    if environment.het_groups and not layout.colocated and environment.het_groups != planned:
        found = " and ".join(str(number) for number in environment.het_groups)
        raise SpecError(
            f"the het groups of this step have {found} ranks (SLURM_NTASKS_HET_GROUP_n) but the plan has "
            f"{planned[0]} of the teacher and {planned[1]} of the student"
        )
