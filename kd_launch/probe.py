"""What a probe's ranks are told to measure, and what they found: values that the launcher and the ranks share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VALUE = ConfigDict(frozen=True, extra="forbid")

Term = Literal[
    "teacher", "student", "loss", "optimizer", "all_reduce", "all_gather", "reduce_scatter", "tensor_parallel",
    "message", "fresh_memory",
]  # fmt: skip
"""What is measured: the name of a factor of a pool."""


class ProbeOrder(BaseModel):
    """What to measure. Models have random weights and as many layers as said here, the rest of their shape is whole."""

    model_config = VALUE

    teacher_layers: int
    student_layers: int
    sizes: tuple[int, ...]
    """Sequences of a forward, and of a forward and backward."""
    collective_bytes: tuple[int, ...]
    """Of the whole tensor."""
    message_bytes: int
    seconds: float
    """For each measurement, after one that warms up; at least three times."""


class Sample(BaseModel):
    """One thing that one rank measured: the median of its repetitions, or the mean where ranks wait for each other."""

    model_config = VALUE

    term: Term
    pool: str
    rank: int
    size: int
    """Sequences, bytes of a tensor, or parameters."""
    payload: Literal["hidden_states", "logits"] | None = None
    """Of a teacher's forward."""
    ranks: int = 1
    """That took part."""
    seconds: Annotated[float, Field(gt=0)]
    repetitions: int
