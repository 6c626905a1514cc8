"""What one token's payload weighs, and seconds to carry a step's payloads from teacher to student."""

from dataclasses import dataclass

from kd_launch.cost.collectives import Fabric
from kd_launch.plan import Payload

TOP_K_ID_BYTES = 4
MISSING_MASS_BYTES = 4


def payload_bytes_per_token(payload: Payload, *, hidden: int, vocabulary: int, width: int, top_k: int) -> float:
    """Bytes of one token's payload; `hidden` of the teacher, `vocabulary` common to both, `width` of a number.

    top_k: ids and logits, and the log of what all other entries weigh.
    """
    if payload == "hidden_states":
        return float(hidden * width)
    if payload == "logits":
        return float(vocabulary * width)
    return float(top_k * (width + TOP_K_ID_BYTES) + MISSING_MASS_BYTES)


@dataclass(frozen=True)
class Route:
    """The way of the payloads. `teacher_nodes` counts those that hold ranks that send (a pipeline's last stage)."""

    teacher: Fabric
    student: Fabric
    teacher_nodes: float
    student_nodes: int
    pairs: int
    """Teacher and student ranks that talk at the same time."""
    same_node: bool
    """All of it stays inside one node."""
    foreign: float | None = None
    """Bytes/s of a node where the pools share no fabric; None: they do."""

    def bytes_per_s(self) -> float:
        """Of the narrowest place: the pairs' own links, or all adapters of the senders or of the receivers."""
        if self.same_node:
            return self.pairs * min(self.teacher.pair, self.student.pair)
        sending, receiving = self.teacher.network, self.student.network
        if self.foreign is not None:
            sending, receiving = min(sending, self.foreign), min(receiving, self.foreign)
        return min(self.teacher_nodes * sending, self.student_nodes * receiving)


def transport_seconds(route: Route, size: float, messages: int) -> float:
    """Of `size` bytes in all; `messages` is how many the busiest sender or receiver handles."""
    latency = max(route.teacher.pair_latency_s, route.student.pair_latency_s)
    factor = max(route.teacher.factors.message, route.student.factors.message)
    return factor * (messages * latency + size / route.bytes_per_s())
