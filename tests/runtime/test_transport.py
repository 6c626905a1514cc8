"""Messages, their stamps, the lanes, and the learning rate that every rank derives alike."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import get_scheduler

from kd_launch.runtime.devices import wait_for
from kd_launch.runtime.links import lanes
from kd_launch.runtime.optimizer import learning_rate
from kd_launch.runtime.payload import STAMP_BYTES, Kind, PayloadForm, Stamp, make_payload, open_payload
from kd_launch.runtime.transport import Parcel, TransportError, check_stamp
from kd_launch.spec import Training
from tests.runtime.harness import make_layout

STAMP = Stamp(attempt=2, micro_batch=41, tokens=17, checksum=0xDEADBEEF, kind="logits", waited_seconds=0.25)


def form(kind: Kind, dtype: torch.dtype = torch.bfloat16) -> PayloadForm:
    return PayloadForm(kind, hidden=5, vocabulary=11, top_k=4, dtype=dtype, temperature=1.0)


def test_a_stamp_survives_its_bytes_and_noise_is_none() -> None:
    assert len(STAMP.pack()) == STAMP_BYTES
    assert Stamp.unpack(STAMP.pack()) == STAMP
    assert Stamp.unpack(torch.zeros(STAMP_BYTES, dtype=torch.uint8)) is None


@pytest.mark.parametrize(("field", "value"), [
    ("attempt", 1), ("micro_batch", 40), ("tokens", 16), ("checksum", 1), ("kind", "top_k"),
])  # fmt: skip
def test_whatever_differs_is_refused_by_name(field: str, value: object) -> None:
    expected = Parcel(41, 3, replace(STAMP, waited_seconds=0.0))
    check_stamp(expected, STAMP)
    words = f"micro-batch 41 from teacher rank 3: refused, its {field.replace('_', '-')}"
    with pytest.raises(TransportError, match=words):
        check_stamp(expected, replace(STAMP, **{field: value}))
    with pytest.raises(TransportError, match="no payload"):
        check_stamp(expected, None)


@pytest.mark.parametrize("kind", ["hidden_states", "logits", "top_k"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_a_payload_survives_its_buffer(kind: Kind, dtype: torch.dtype, tokens: int) -> None:
    this = form(kind, dtype)
    hidden, logits = torch.randn(tokens, 5), torch.randn(tokens, 13)
    parts = make_payload(this, hidden, None, logits)
    buffer = torch.full((this.message_bytes(tokens),), 255, dtype=torch.uint8)
    for view, part in zip(this.views(buffer, tokens), parts, strict=True):
        view.copy_(part)
    for view, part in zip(this.views(buffer, tokens), parts, strict=True):
        torch.testing.assert_close(view, part, rtol=0, atol=0)
    assert buffer[:STAMP_BYTES].eq(255).all()
    head = object() if kind == "hidden_states" else None
    assert open_payload(this, this.views(buffer, tokens), head).vocabulary == 11


def test_top_k_carries_the_missing_mass() -> None:
    ids, logprobs, missing = make_payload(form("top_k"), torch.empty(3, 5), None, torch.randn(3, 11))
    assert ids.dtype == torch.int32
    torch.testing.assert_close(logprobs.exp().sum(-1) + missing.exp(), torch.ones(3))


def test_hidden_states_are_v_over_h_times_smaller_than_logits() -> None:
    payload = [form(kind).message_bytes(1000) - STAMP_BYTES for kind in ("logits", "hidden_states")]
    assert payload[0] / payload[1] == 11 / 5


class Message:
    """As torch gives it for one that is on its way."""

    def __init__(self, acts: list[str], *, is_there: bool) -> None:
        self._acts, self._is_there = acts, is_there

    def is_completed(self) -> bool:
        return self._is_there

    def wait(self) -> None:
        self._acts.append("wait")


@pytest.mark.parametrize(("device", "is_there", "expected"), [
    ("cuda", False, ["finish", "wait", "finish"]),  # its own work first, which is no wait for the message
    ("cuda", True, ["wait"]),
    ("cpu", True, ["wait"]),
])  # fmt: skip
def test_a_gpu_waits_itself_and_so_does_the_host_for_it(
    monkeypatch: pytest.MonkeyPatch, device: str, is_there: bool, expected: list[str]
) -> None:
    acts: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: acts.append("finish"))
    monkeypatch.setattr("torch.cuda.current_stream", lambda _: stream)
    wait_for([Message(acts, is_there=is_there)], torch.device(device))  # type: ignore[list-item]
    assert acts == expected


def test_lanes_keep_every_replica_busy_and_share_no_rank() -> None:
    layout = make_layout(teachers=6, replicas=2, fsdp=2, micro_batch=1, accumulation=1)
    assert lanes(layout) == [((0, 2, 4), (6, 8)), ((1, 3, 5), (7, 9))]
    assert lanes(make_layout(teachers=2, replicas=2, colocated=True, micro_batch=1, accumulation=1)) == []


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_learning_rate_is_transformers(schedule: str, warmup: int) -> None:
    training = Training(steps=30, learning_rate=0.5, schedule=schedule, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=30)
    for step in range(30):
        assert math.isclose(learning_rate(step, training), scheduler.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        scheduler.step()
