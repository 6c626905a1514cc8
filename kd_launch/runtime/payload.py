"""What the teacher sends for one micro-batch: hidden states, logits or top-k logits, and how each is laid out in bytes.

Only loss tokens travel. A message is one contiguous buffer: a stamp of 64 bytes that says what it is, then the tensors
of the payload, each row by row. Sizes are derived on both sides and never sent.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_launch.runtime.divergence import Finish
from kd_launch.runtime.losses import Buckets, Buffer, Head, WholeLogits

Kind = Literal["hidden_states", "logits", "top_k"]
STAMP_BYTES = 64
_KINDS: tuple[Kind, ...] = ("hidden_states", "logits", "top_k")
_MAGIC = 0x6B642D6C61756E63  # "kd-launc": a stamp, of this form


@dataclass(frozen=True)
class PayloadForm:
    """What both sides know of every payload of a run."""

    kind: Kind
    hidden: int
    """The teacher's hidden size."""
    vocabulary: int
    """Logits that both models have."""
    top_k: int
    dtype: torch.dtype
    """The teacher's."""
    temperature: float
    """At which top-k probabilities are taken."""

    def parts(self, tokens: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of a payload of `tokens` loss tokens, in the order of the buffer."""
        if self.kind == "hidden_states":
            return [((tokens, self.hidden), self.dtype)]
        if self.kind == "logits":
            return [((tokens, self.vocabulary), self.dtype)]
        k = min(self.top_k, self.vocabulary)
        return [((tokens, k), torch.int32), ((tokens, k), torch.float32), ((tokens,), torch.float32)]

    def empty(self, device: torch.device) -> list[Tensor]:
        """The tensors of a payload without loss tokens: a teacher need not compute it."""
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self.parts(0)]

    def message_bytes(self, tokens: int) -> int:
        """Bytes of a message, its stamp included."""
        return STAMP_BYTES + sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.parts(tokens))

    def views(self, buffer: Tensor, tokens: int) -> list[Tensor]:
        """The tensors of a payload as views into a message's buffer (uint8)."""
        views, at = [], STAMP_BYTES
        for shape, dtype in self.parts(tokens):
            size = math.prod(shape) * dtype.itemsize
            views.append(buffer[at : at + size].view(dtype).view(shape))
            at += size
        return views


@dataclass(frozen=True)
class Stamp:
    """What a message says of itself: the receiver compares it with what it expects, field by field."""

    attempt: int
    micro_batch: int
    """Its number in the run, from 0."""
    tokens: int
    """Loss tokens."""
    checksum: int
    """CRC-32 of the micro-batch's token ids and loss positions."""
    kind: Kind
    waited_seconds: float = 0.0
    """Since its last message, by the teacher, for a free buffer. Not compared."""

    def pack(self) -> Tensor:
        """As 64 bytes."""
        microseconds = round(self.waited_seconds * 1e6)
        words = [_MAGIC, self.attempt, self.micro_batch, self.tokens, self.checksum, _KINDS.index(self.kind)]
        return torch.tensor([*words, microseconds, 0], dtype=torch.int64).view(torch.uint8)

    @classmethod
    def unpack(cls, data: Tensor) -> "Stamp | None":
        """Reads 64 bytes; None when they are no stamp."""
        magic, attempt, micro_batch, tokens, checksum, kind, waited, _ = data.cpu().view(torch.int64).tolist()
        if magic != _MAGIC or not 0 <= kind < len(_KINDS):
            return None
        return cls(attempt, micro_batch, tokens, checksum, _KINDS[kind], waited / 1e6)


@dataclass(frozen=True)
class HiddenStates:
    """The teacher's last hidden states, [n, h]; exact with the teacher's head at hand."""

    values: Tensor
    head: Head
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:
        hidden = self.values[rows]
        out = buffer.rows(len(hidden), self.vocabulary, hidden.dtype)
        return WholeLogits(self.head.products(hidden, self.vocabulary, out), self.head.finish)


@dataclass(frozen=True)
class Logits:
    """The teacher's logits, [n, V]."""

    values: Tensor
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:  # noqa: ARG002 - they are at hand
        return WholeLogits(self.values[rows], Finish())


@dataclass(frozen=True)
class TopKLogits:
    """The teacher's k most likely tokens: not exact."""

    ids: Tensor
    """[n, k], int32."""
    logprobs: Tensor
    """[n, k], float32, at the loss's temperature."""
    missing: Tensor
    """[n], float32, the log of the missing mass."""
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> Buckets:  # noqa: ARG002 - no product is needed
        return Buckets(self.ids[rows].long(), self.logprobs[rows], self.missing[rows])


Payload = HiddenStates | Logits | TopKLogits


def make_payload(form: PayloadForm, hidden: Tensor, head: Head | None, logits: Tensor | None) -> list[Tensor]:
    """The tensors of a payload, as `PayloadForm.parts` orders them.

    Args:
        form: of the run.
        hidden: [n, h] last hidden states of the loss tokens.
        head: the teacher's; needed for logits and top_k unless `logits` is given.
        logits: [n, V] where the model itself computed them.
    """
    if form.kind == "hidden_states":
        return [hidden.to(form.dtype)]
    if logits is None:
        assert head is not None
        logits = head.logits(hidden, form.vocabulary)
    logits = logits[:, : form.vocabulary]
    if form.kind == "logits":
        return [logits.to(form.dtype)]
    logprobs = torch.log_softmax(logits.float() / form.temperature, -1)
    top = logprobs.topk(min(form.top_k, form.vocabulary), dim=-1)
    missing = logprobs.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    return [top.indices.to(torch.int32), top.values, missing]


def open_payload(form: PayloadForm, parts: list[Tensor], head: Head | None) -> Payload:
    """A payload from its tensors; `head` is the teacher's, on the student's device, for hidden states."""
    if form.kind == "hidden_states":
        assert head is not None
        return HiddenStates(parts[0], head, form.vocabulary)
    if form.kind == "logits":
        return Logits(parts[0], form.vocabulary)
    return TopKLogits(parts[0], parts[1], parts[2], form.vocabulary)
