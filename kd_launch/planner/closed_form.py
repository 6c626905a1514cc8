"""Where splitting products (TP) stops to pay against gathering weights (FSDP) for one teacher: the closed form that
solves arXiv 2606.27797's model, beside what the cost model gives for the same GPUs."""

from typing import NamedTuple

from pydantic import BaseModel

from kd_launch.cost.collectives import Collective
from kd_launch.cost.roles import teacher_seconds
from kd_launch.cost.setting import Setting, Site, TeacherDegrees
from kd_launch.plan import VALUE
from kd_launch.planner.layouts import divisors

FEWEST, MOST = 1 / 64, 2.0**20
"""Samples of a group between which the two are compared."""
STEPS = 60


class Links(NamedTuple):
    """The paper's terms for `gpus` GPUs on `nodes` nodes."""

    gpus: int
    nodes: int
    latency: float
    """A: seconds of one all-reduce of nothing."""
    seconds_per_byte: float
    """C: of one all-reduce."""


class Turn(BaseModel):
    """Samples of a group of GPUs with one teacher at which TP and FSDP take as long; fewer favour TP."""

    model_config = VALUE

    gpus: int
    closed_form: float
    evaluated: float | None
    """None: the cost model finds one of them faster at every size."""

    @property
    def difference(self) -> float | None:
        """Of the closed form against the evaluated model, as a share of the latter."""
        return None if self.evaluated is None else self.closed_form / self.evaluated - 1


def inflection(weights: float, layers: int, sample: float, links: Links, *, kappa: float = 1.0) -> float:
    """b_inf = [kappa (A + M C) / (2 l) - A] / (a_s C), the paper's inequality (5) solved for equal batches.

    weights: M, bytes. sample: a_s, bytes of one sample's activations after a layer. kappa: the share of FSDP's
    communication that is not hidden over TP's. Without latency it is kappa M / (2 l a_s): the bandwidth cancels.

    >>> round(inflection(16.06e9, 32, 2 * 1024 * 4096, Links(8, 1, 0.0, 1e-12)), 1)
    29.9
    """
    gathered = kappa * (links.latency + weights * links.seconds_per_byte) / (2 * layers)
    return (gathered - links.latency) / (sample * links.seconds_per_byte)


def links_of(site: Site, gpus: int) -> Links:
    """Of neighbours in one node: A is the latency of a collective; every GPU is a step of the ring."""
    busy = 2 * (gpus - 1) / (gpus * site.fabric.bus[Collective.ALL_REDUCE][gpus])
    return Links(gpus, 1, site.fabric.latency_s, busy)


def turn_of(setting: Setting, site: Site) -> Turn | None:
    """For the largest group of a node over which the teacher may be split; None where it may not."""
    teacher, size = setting.teacher, site.pool.gpus_per_node
    legal = [gpus for gpus in divisors(size) if gpus > 1 and teacher.legal_tp(gpus)]
    if not legal or site.teacher_device is None:
        return None
    weights = float(setting.teacher_width * teacher.parameters)
    sample = float(setting.teacher_width * setting.sequence_length * teacher.hidden)
    return Turn(
        gpus=legal[-1],
        closed_form=inflection(weights, teacher.layers, sample, links_of(site, legal[-1])),
        evaluated=_evaluated(setting, site, legal[-1]),
    )


def _evaluated(setting: Setting, site: Site, gpus: int) -> float | None:
    """By bisection of the cost model."""
    low, high = FEWEST, MOST
    if _tp_gains(setting, site, gpus, low) <= 0 or _tp_gains(setting, site, gpus, high) >= 0:
        return None
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        if _tp_gains(setting, site, gpus, middle) > 0:
            low = middle
        else:
            high = middle
    return high


def _tp_gains(setting: Setting, site: Site, gpus: int, samples: float) -> float:
    """Seconds by which TP is faster for `samples` sequences on the group."""
    tokens, block = samples * setting.sequence_length, site.pool.gpus_per_node
    fsdp = teacher_seconds(setting, site, TeacherDegrees(gpus, 1, 1), block, tokens / gpus, "hidden_states")
    tp = teacher_seconds(setting, site, TeacherDegrees(1, gpus, 1), block, tokens, "hidden_states")
    return fsdp.each - tp.each
