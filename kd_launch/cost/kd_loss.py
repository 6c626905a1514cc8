"""Bytes of a distillation loss at its peak, forward and backward, by how it is implemented."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossImplementation:
    """One implementation, as measured; see cost_model.yaml."""

    bytes_per_logit: float
    """Alive at once, per token and vocabulary entry of a chunk."""
    chunk: int | None
    """Tokens of a chunk; None: all at once."""
    head_copies: float
    """Of both output heads in 16 bits: weights, their gradients and what is copied on the way; 0: logits are given."""

    def peak_bytes(self, tokens: int, vocabulary: int, *, student_hidden: int = 0, teacher_hidden: int = 0) -> float:
        """Of one micro-batch of `tokens` tokens; `vocabulary` entries are common to both models.

        In chunks, the inputs and their gradients stay whole, and the logits of one chunk are alive at a time.
        """
        rows = tokens if self.chunk is None else min(tokens, self.chunk)
        heads = 2.0 * self.head_copies * vocabulary * (student_hidden + teacher_hidden)
        inputs = 2.0 * tokens * (2 * student_hidden + teacher_hidden) if self.head_copies else 0.0
        return self.bytes_per_logit * rows * vocabulary + heads + inputs
