"""What the teacher sends for one micro-batch: hidden states, logits or top-k logits, and how each is laid out in bytes.

Only loss tokens travel. A message is one contiguous buffer: a stamp of 64 bytes that says what it is, then the tensors
of the payload, each row by row. Sizes are derived on both sides and never sent.

Where the ranks of a tensor-parallel teacher share the work of sending, each sends a stripe: some of the vocabulary's
columns of logits, since it has no others, and of anything else some rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_launch.runtime.divergence import Finish
from kd_launch.runtime.losses import Buckets, Buffer, Head, WholeLogits, chunks
from kd_launch.runtime.pieces import Range, chunk_range
from kd_launch.runtime.shared_head import SharedHead, SharedHiddenStates

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
    stripes: int = 1
    """Messages of one payload: one from each tensor-parallel rank."""
    head_rows: int = 0
    """Rows of the teacher's head, padding too, as they are cut over its ranks; 0: as many as `vocabulary`."""

    def parts(self, tokens: int, stripe: int = 0) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of a stripe of a payload of `tokens` loss tokens, as in the buffer."""
        if self.kind == "logits":
            start, stop = self.columns(stripe)
            return [((tokens, stop - start), self.dtype)]
        start, stop = self.rows(tokens, stripe)
        if self.kind == "hidden_states":
            return [((stop - start, self.hidden), self.dtype)]
        rows, k = stop - start, min(self.top_k, self.vocabulary)
        return [((rows, k), torch.int32), ((rows, k), torch.float32), ((rows,), torch.float32)]

    def rows(self, tokens: int, stripe: int) -> Range:
        """The tokens of a stripe of hidden states or top-k logits."""
        return chunk_range(tokens, stripe, self.stripes)

    def columns(self, stripe: int) -> Range:
        """The vocabulary of a stripe of logits: what both models have of the rows of the head that its rank holds."""
        start, stop = chunk_range(self.head_rows or self.vocabulary, stripe, self.stripes)
        return min(start, self.vocabulary), min(stop, self.vocabulary)

    def cut(self, parts: list[Tensor], tokens: int, stripe: int) -> list[Tensor]:
        """A rank's stripe of a payload: all that it has of logits, else its rows of what every rank has."""
        if self.kind == "logits":
            return parts
        start, stop = self.rows(tokens, stripe)
        return [part[start:stop] for part in parts]

    def chunks(self, hidden: Tensor) -> list[slice]:
        """Of rows whose float32 logits may live at once, on whatever rank has a part of their columns."""
        return chunks(len(hidden), self.vocabulary, hidden.device)

    def empty(self, device: torch.device, stripe: int = 0) -> list[Tensor]:
        """The tensors of a payload without loss tokens: a teacher need not compute it."""
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self.parts(0, stripe)]

    def message_bytes(self, tokens: int, stripe: int = 0) -> int:
        """Bytes of a message, its stamp included."""
        return STAMP_BYTES + sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.parts(tokens, stripe))

    def views(self, buffer: Tensor, tokens: int, stripe: int = 0) -> list[Tensor]:
        """The tensors of a payload as views into a message's buffer (uint8)."""
        views, at = [], STAMP_BYTES
        for shape, dtype in self.parts(tokens, stripe):
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
    stripe: int = 0

    def pack(self) -> Tensor:
        """As 64 bytes."""
        microseconds = round(self.waited_seconds * 1e6)
        words = [_MAGIC, self.attempt, self.micro_batch, self.tokens, self.checksum, _KINDS.index(self.kind)]
        return torch.tensor([*words, microseconds, self.stripe], dtype=torch.int64).view(torch.uint8)

    @classmethod
    def unpack(cls, data: Tensor) -> "Stamp | None":
        """Reads 64 bytes; None when they are no stamp."""
        magic, attempt, micro_batch, tokens, checksum, kind, waited, stripe = data.cpu().view(torch.int64).tolist()
        if magic != _MAGIC or not 0 <= kind < len(_KINDS):
            return None
        return cls(attempt, micro_batch, tokens, checksum, _KINDS[kind], waited / 1e6, stripe)


class _Alone:
    """A payload that this rank opens by itself."""

    vocabulary: int

    def cut(self, tokens: int, device: torch.device) -> list[slice]:
        return chunks(tokens, self.vocabulary, device)


@dataclass(frozen=True)
class HiddenStates(_Alone):
    """The teacher's last hidden states, [n, h]; exact with the teacher's head at hand."""

    values: Tensor
    head: Head
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:
        hidden = self.values[rows]
        out = buffer.rows(len(hidden), self.vocabulary, hidden.dtype)
        return WholeLogits(self.head.products(hidden, self.vocabulary, out), self.head.finish)


@dataclass(frozen=True)
class Logits(_Alone):
    """The teacher's logits, [n, V]."""

    values: Tensor
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:  # noqa: ARG002 - they are at hand
        return WholeLogits(self.values[rows], Finish())


@dataclass(frozen=True)
class StripedLogits(_Alone):
    """The teacher's logits by columns, [n, V / stripes] each; put together a chunk at a time."""

    stripes: Sequence[Tensor]
    vocabulary: int

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:
        parts = [stripe[rows] for stripe in self.stripes]
        whole = buffer.rows(len(parts[0]), self.vocabulary, parts[0].dtype)
        return WholeLogits(torch.cat(parts, -1, out=whole), Finish())


@dataclass(frozen=True)
class TopKLogits(_Alone):
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


Payload = HiddenStates | SharedHiddenStates | Logits | StripedLogits | TopKLogits


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
    if logits is not None:
        logits = logits[:, : form.vocabulary]
        return [logits.to(form.dtype)] if form.kind == "logits" else _top(form, logits)
    assert head is not None
    if form.kind == "logits":
        return [head.finished(head.products(hidden, form.vocabulary)).to(form.dtype)]
    found = [_top(form, head.logits(hidden[rows], form.vocabulary)) for rows in form.chunks(hidden)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)] if found else form.empty(hidden.device)


def _top(form: PayloadForm, logits: Tensor) -> list[Tensor]:
    logprobs = torch.log_softmax(logits.float() / form.temperature, -1)
    top = logprobs.topk(min(form.top_k, form.vocabulary), dim=-1)
    missing = logprobs.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    return [top.indices.to(torch.int32), top.values, missing]


@dataclass(frozen=True)
class TopStripe:
    """The largest logits of each row in some columns of the vocabulary, and what else there is, as logarithms."""

    values: Tensor
    """[n, k], logits over the temperature; -inf where a stripe has fewer than k."""
    ids: Tensor
    """[n, k], of the whole vocabulary."""
    rest: Tensor
    """[n], log of the sum of the exponentials of all others."""


def top_stripe(form: PayloadForm, hidden: Tensor, head: Head, columns: Range) -> TopStripe:
    """Of some columns of the vocabulary, which are a head's first rows, for one hidden state [n, h] at least."""
    start, stop = columns
    found = [_top_stripe(form, head.logits(hidden[rows], stop - start), start) for rows in form.chunks(hidden)]
    return TopStripe(
        torch.cat([one.values for one in found]), torch.cat([one.ids for one in found]),
        torch.cat([one.rest for one in found]),
    )  # fmt: skip


def _top_stripe(form: PayloadForm, logits: Tensor, first: int) -> TopStripe:
    wide, k = logits.float() / form.temperature, min(form.top_k, form.vocabulary)
    missing = max(0, k - wide.shape[1])
    if missing:
        wide = torch.nn.functional.pad(wide, (0, missing), value=-math.inf)
    top = wide.topk(k, dim=-1)
    rest = wide.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    return TopStripe(top.values, top.indices + first, rest)


def merge_top(stripes: Sequence[TopStripe], k: int) -> list[Tensor]:
    """The payload of the k largest logits over all stripes. What is dropped joins the missing mass."""
    values, ids = torch.cat([s.values for s in stripes], -1), torch.cat([s.ids for s in stripes], -1)
    top = values.topk(k, dim=-1)
    dropped = values.scatter(-1, top.indices, -math.inf)
    rest = torch.cat([dropped, *(s.rest.unsqueeze(-1) for s in stripes)], -1).logsumexp(-1)
    total = torch.logaddexp(top.values.logsumexp(-1), rest)
    return [ids.gather(-1, top.indices).to(torch.int32), top.values - total.unsqueeze(-1), rest - total]


def open_stripes(form: PayloadForm, stripes: Sequence[list[Tensor]], head: Head | SharedHead | None) -> Payload:
    """A payload from the tensors of all its stripes."""
    if form.stripes == 1:
        return open_payload(form, stripes[0], head)
    if form.kind == "logits":
        return StripedLogits([parts[0] for parts in stripes], form.vocabulary)
    whole = [torch.cat(list(parts)) for parts in zip(*stripes, strict=True)]
    return open_payload(form, whole, head)


def open_payload(form: PayloadForm, parts: list[Tensor], head: Head | SharedHead | None) -> Payload:
    """A payload from its tensors; `head` is the teacher's, on the student's device, for hidden states."""
    if form.kind == "hidden_states":
        if isinstance(head, SharedHead):
            return SharedHiddenStates(parts[0], head, form.vocabulary)
        assert head is not None
        return HiddenStates(parts[0], head, form.vocabulary)
    if form.kind == "logits":
        return Logits(parts[0], form.vocabulary)
    return TopKLogits(parts[0], parts[1], parts[2], form.vocabulary)
