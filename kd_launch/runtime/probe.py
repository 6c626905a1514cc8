"""A rank of a probe: joins like any rank, measures what the plan's order says, writes it down, and leaves.

Teachers and students measure at the same time, as they will work: what they share of a machine, they share here too.
"""

import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from kd_launch.plan import Role, RunPlan
from kd_launch.probe import ProbeOrder, Sample, Term
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runtime.allocator import HUGE_BYTES
from kd_launch.runtime.compiling import choose_compare
from kd_launch.runtime.losses import ChunkedLoss, Head, LossInputs, TeacherSignal
from kd_launch.runtime.meeting import PATIENCE
from kd_launch.runtime.models import DTYPES, blank_model, blank_student, decoder_layers, head_of, keep_layers
from kd_launch.runtime.optimizer import clip_gradients, make_adamw
from kd_launch.runtime.parallel import MicroBatch, last_hidden_states
from kd_launch.runtime.payload import Logits, PayloadForm
from kd_launch.runtime.sharding import take_memory
from kd_launch.runtime.teacher import FrozenTeacher, objective, payload_form
from kd_launch.runtime.world import World

LEAST = 3
"""Repetitions of what a rank does by itself, and more while there is time."""
TOGETHER = (20, 100)
"""Of what several do, who must agree on a number: of large tensors fewer, since they take long on slow links."""
LARGE = 2**20
"""Bytes from which on they are fewer."""


@dataclass(frozen=True)
class Bench:
    """What every measurement of a rank needs."""

    world: World
    run: RunPlan
    order: ProbeOrder
    pool: str

    def alone(self, term: Term, work: Callable[[], object], **facts: object) -> Sample:
        """The median time of what a rank does by itself."""
        self._timed(work)
        times: list[float] = []
        end = time.perf_counter() + self.order.seconds
        while len(times) < LEAST or time.perf_counter() < end:
            times.append(self._timed(work))
        return self._sample(term, statistics.median(times), len(times), facts)

    def together(
        self, term: Term, work: Callable[[], object], before: Callable[[], object] | None = None, *, size: int,
        ranks: int,
    ) -> Sample:  # fmt: skip
        """The mean time of what ranks do together, each time after `before`, without the fastest and slowest tenth.

        A process that is woken on cores that others use gets one at once or when a time slice is over, several times as
        late: neither half of the times says anything of the other.
        """
        self._timed(work)
        least, most = TOGETHER
        times: list[float] = []
        for _ in range(max(least, min(most, most * LARGE // size))):
            if before is not None:
                before()
            times.append(self._timed(work))
        cut = len(times) // 10
        mean = statistics.fmean(sorted(times)[cut:-cut])
        return self._sample(term, mean, len(times), {"size": size, "ranks": ranks})

    def _sample(self, term: Term, seconds: float, repetitions: int, facts: dict[str, object]) -> Sample:
        return Sample.model_validate(
            {"term": term, "pool": self.pool, "rank": self.world.rank, "seconds": seconds, "repetitions": repetitions,
             **facts}
        )  # fmt: skip

    def _timed(self, work: Callable[[], object]) -> float:
        self._finish()
        started = time.perf_counter()
        work()
        self._finish()
        return time.perf_counter() - started

    def _finish(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)


def measure(world: World, run: RunPlan, run_dir: RunDir) -> None:
    """Every measurement of this rank, written to the run's folder when all ranks are through."""
    order = run.probe
    assert order is not None
    layout = run.layout
    pool = layout.teacher.pool if world.role is Role.TEACHER else layout.student.pool
    bench = Bench(world, run, order, pool)
    found: list[Sample] = []
    if world.role is not Role.STUDENT:
        found += _teacher_samples(bench)
    if world.role is not Role.TEACHER:
        found += _student_samples(bench)
    _all_are_here(world, "alone")
    run_dir.probes.mkdir(exist_ok=True)
    found += _collective_samples(bench)
    _all_are_here(world, "together")
    found += _message_samples(bench)
    found += _memory_samples(bench)
    write_json(run_dir.probe(world.rank), {"samples": [sample.model_dump() for sample in found]})
    _all_are_here(world, "written")


def _all_are_here(world: World, after: str) -> None:
    """Returns when every rank has measured so much. By the store: the world has no collectives."""
    if world.store.add(f"measured {after}", 1) == world.size:
        world.store.set(f"all measured {after}", "1")
    world.store.wait([f"all measured {after}"], PATIENCE)


def _batch(bench: Bench, sequences: int, vocabulary: int) -> MicroBatch:
    """Random tokens, each of which counts for the loss."""
    device, length = bench.world.device, bench.run.spec.data.sequence_length
    ids = torch.randint(vocabulary, (sequences, length), device=device)
    positions = torch.arange(length, device=device).expand(sequences, length)
    return MicroBatch(ids, positions, torch.arange(ids.numel(), device=device), ids.flatten())


@torch.no_grad()
def _with_layers(bench: Bench, model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The first layers of a model without storage, on the device with random weights."""
    if layers < len(decoder_layers(model)):
        model = keep_layers(model, tuple(range(layers)))
    take_memory(model, bench.world.device, model)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02)
    model.config.use_cache = False
    return model


def _form(bench: Bench) -> PayloadForm:
    form = payload_form(bench.run, DTYPES[bench.run.spec.teacher.dtype])
    return replace(form, kind="logits", stripes=1)


def _teacher_samples(bench: Bench) -> Iterator[Sample]:
    """The forward, with and without the head's product."""
    spec, form = bench.run.spec.teacher, _form(bench)
    model = blank_model(spec, "teacher.model", DTYPES[spec.dtype])
    model = _with_layers(bench, model, bench.order.teacher_layers).requires_grad_(False).eval()
    for size in bench.order.sizes:
        batch = _batch(bench, size, form.vocabulary)
        teacher = FrozenTeacher(model, form)
        yield bench.alone("teacher", lambda t=teacher, b=batch: t.payload(b), size=size, payload="logits")  # type: ignore[misc]
        if teacher.head is not None:
            bare = FrozenTeacher(model, replace(form, kind="hidden_states"))
            yield bench.alone("teacher", lambda t=bare, b=batch: t.payload(b), size=size, payload="hidden_states")  # type: ignore[misc]


def _student_samples(bench: Bench) -> Iterator[Sample]:
    """Layers forward and backward, the loss and its gradient, the update."""
    spec = bench.run.spec
    model = _with_layers(bench, blank_student(spec)[0], bench.order.student_layers).train()
    yield _update(bench, model)
    model = model.to(DTYPES[spec.student.dtype])
    head, vocabulary = head_of(model, "student.model"), _form(bench).vocabulary
    for size in bench.order.sizes:
        batch = _batch(bench, size, vocabulary)
        yield bench.alone("student", lambda b=batch: _pass(model, b), size=size)  # type: ignore[misc]
        yield bench.alone("loss", _loss(bench, head, batch, vocabulary), size=size)


def _update(bench: Bench, model: PreTrainedModel) -> Sample:
    """The norm of the gradients and AdamW on all parameters, in float32."""
    training = bench.run.spec.training
    optimizer = make_adamw(model, training)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)

    def work() -> None:
        clip_gradients(parameters, training.max_grad_norm)
        optimizer.step()

    found = bench.alone("optimizer", work, size=sum(parameter.numel() for parameter in parameters))
    optimizer.zero_grad()
    return found


def _pass(model: PreTrainedModel, batch: MicroBatch) -> None:
    """Without the loss, and without adding gradients to those of an earlier micro-batch."""
    model.zero_grad()
    hidden = last_hidden_states(model.base_model, batch)
    hidden.backward(torch.full_like(hidden, 1e-3))  # type: ignore[no-untyped-call]


def _loss(bench: Bench, head: Head, batch: MicroBatch, vocabulary: int) -> Callable[[], None]:
    device, spec = bench.world.device, bench.run.spec
    tokens, width = len(batch.index), head.weight.shape[1]
    hidden = torch.randn(tokens, width, device=device, dtype=head.weight.dtype).requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    values = torch.randn(tokens, vocabulary, device=device, dtype=DTYPES[spec.teacher.dtype])

    def student_head(given: Tensor, _: Tensor | None) -> Head:
        return replace(head, weight=given, bias=None)

    compare = choose_compare(spec.training.compile, device)
    signal, rule = cast(TeacherSignal, Logits(values, vocabulary)), objective(bench.run)
    inputs = LossInputs(signal, batch.labels, rule, 1e-3, student_head, False, compare)

    def work() -> None:
        hidden.grad = weight.grad = None
        loss, _ = ChunkedLoss.apply(hidden, weight, None, inputs)  # type: ignore[no-untyped-call]
        loss.backward()

    return work


def _collective_samples(bench: Bench) -> Iterator[Sample]:
    """Of all ranks of a pool together, in the bytes of gradients: float32."""
    layout, rank = bench.run.layout, bench.world.rank
    roles = [(layout.teacher.pool, layout.teacher_ranks), (layout.student.pool, layout.student_ranks)]
    for name in dict.fromkeys(pool for pool, _ in roles):
        members = sorted({one for pool, ranks in roles if pool == name for one in ranks})
        group = dist.new_group(members)
        if rank in members and len(members) > 1:
            for size in bench.order.collective_bytes:
                yield from _of_group(bench, group, len(members), size)
            if name == layout.teacher.pool:
                yield from _stops(bench, group, len(members))


def _of_group(bench: Bench, group: dist.ProcessGroup, ranks: int, size: int) -> Iterator[Sample]:
    part = torch.zeros(max(1, size // (4 * ranks)), device=bench.world.device)
    whole = torch.zeros(ranks * part.numel(), device=bench.world.device)
    works: dict[Term, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole, group=group),
    }
    for term, work in works.items():
        yield bench.together(term, work, _products(bench, ranks), size=4 * whole.numel(), ranks=ranks)


def _stops(bench: Bench, group: dist.ProcessGroup, ranks: int) -> Iterator[Sample]:
    """All-reduces of a micro-batch's activations, as in the layers of a tensor-parallel teacher."""
    form, device = _form(bench), bench.world.device
    for size in bench.order.sizes:
        tokens = size * bench.run.spec.data.sequence_length
        hidden = torch.zeros(tokens, form.hidden, dtype=form.dtype, device=device)
        bytes_ = hidden.numel() * hidden.element_size()

        def work(hidden: Tensor = hidden) -> None:
            dist.all_reduce(hidden, group=group)

        yield bench.together("tensor_parallel", work, _products(bench, ranks), size=bytes_, ranks=ranks)


def _products(bench: Bench, ranks: int) -> Callable[[], object]:
    """Half of a layer's work, which lies before a collective: ranks that come from it find nobody waiting."""
    form, device = _form(bench), bench.world.device
    tokens = bench.order.sizes[0] * bench.run.spec.data.sequence_length
    hidden = torch.zeros(tokens, form.hidden, dtype=form.dtype, device=device)
    weight = torch.zeros(form.hidden, 6 * form.hidden // ranks, dtype=form.dtype, device=device)
    return lambda: hidden @ weight


def _message_samples(bench: Bench) -> Iterator[Sample]:
    """One payload from the first teacher to the first student; between the first two ranks that have both roles."""
    layout, rank = bench.run.layout, bench.world.rank
    receiver = layout.student_ranks.start if not layout.colocated else 1
    if rank not in (0, receiver) or receiver >= layout.world_size:
        return
    buffer = torch.zeros(bench.order.message_bytes, dtype=torch.uint8, device=bench.world.device)
    word = torch.zeros(1, dtype=torch.uint8, device=bench.world.device)

    def work() -> None:  # and a byte back, so that both know that it is there
        if rank == 0:
            dist.send(buffer, receiver)
            dist.recv(word, receiver)
        else:
            dist.recv(buffer, 0)
            dist.send(word, 0)

    yield bench.together("message", work, size=bench.order.message_bytes, ranks=2)


def _memory_samples(bench: Bench) -> Iterator[Sample]:
    """On a CPU a micro-batch's activations, written to memory that is had anew from the kernel, in its small pages, as
    by a rank that gathers a teacher's layers."""
    if bench.world.device.type == "cpu":
        form = _form(bench)
        tokens = bench.order.sizes[0] * bench.run.spec.data.sequence_length
        size = min(tokens * form.hidden * form.dtype.itemsize, HUGE_BYTES // 2)
        yield bench.alone("fresh_memory", lambda: _write_anew(size), size=size)


def _write_anew(size: int) -> None:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
