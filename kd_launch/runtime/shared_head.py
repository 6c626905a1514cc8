"""The teacher's head spread over the ranks of one of the student's shard groups, where each has no room for all of it.

Each rank holds some rows of the head. For one chunk of loss tokens after the other all ranks of the group gather their
hidden states, multiply those of all with what they hold, and give each its columns of the logits: together they compute
what each would compute alone, in the same number of products. What travels is the size of a chunk's logits, and stays
among ranks that are neighbours.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kd_launch.runtime.losses import Buffer, Head, WholeLogits, chunks
from kd_launch.runtime.pieces import chunk_range


@dataclass(frozen=True)
class SharedHead:
    """One rank's part of it."""

    part: Head
    """Its rows of the head and of the bias: a `chunk_range` of the vocabulary."""
    vocabulary: int
    group: dist.ProcessGroup

    def most(self, *values: int) -> tuple[int, ...]:
        """The largest of each value over all ranks of the group."""
        found = torch.tensor(values, device=self.part.weight.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return tuple(found.tolist())

    def products(self, hidden: Tensor, most: int, buffer: Buffer) -> Tensor:
        """h W^T + bias of some hidden states [n, h]: [n, vocabulary]. All ranks of the group call it at once.

        Args:
            hidden: of this rank; there may be none.
            most: the largest n of any rank.
            buffer: for the result.
        """
        ranks = self.group.size()
        mine, everybodys = hidden.new_zeros(most, hidden.shape[1]), hidden.new_empty(ranks * most, hidden.shape[1])
        mine[: len(hidden)] = hidden
        dist.all_gather_into_tensor(everybodys, mine, group=self.group)
        computed = self.part.products(everybodys, len(self.part.weight))
        columns = [chunk_range(self.vocabulary, rank, ranks) for rank in range(ranks)]
        sizes = [most * (stop - start) for start, stop in columns]
        received = computed.new_empty(sum(sizes))
        given = [most * computed.shape[1]] * ranks
        dist.all_to_all_single(received, computed.flatten(), sizes, given, group=self.group)
        whole = buffer.rows(len(hidden), self.vocabulary, hidden.dtype)
        for part, (start, stop) in zip(torch.split_with_sizes(received, sizes), columns, strict=True):
            whole[:, start:stop] = part.view(most, stop - start)[: len(hidden)]
        return whole


@dataclass
class SharedHiddenStates:
    """A payload of hidden states, [n, h], whose logits all ranks of a group compute together."""

    values: Tensor
    head: SharedHead
    vocabulary: int
    _most: int = 0

    def cut(self, tokens: int, device: torch.device) -> list[slice]:
        """As many chunks as the rank with the most has: the last ones may have no rows."""
        mine = chunks(tokens, self.vocabulary, device)
        number, self._most = self.head.most(len(mine), max((rows.stop - rows.start for rows in mine), default=0))
        return mine + [slice(tokens, tokens)] * (number - len(mine))

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits:
        return WholeLogits(self.head.products(self.values[rows], self._most, buffer), self.head.part.finish)
