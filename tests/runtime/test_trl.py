"""The losses of every step equal those of TRL's GKDTrainer: same models, rows, order and hyperparameters.

TRL runs in this process, kd-launch as the rank that a launcher would start. Rows of different numbers of loss tokens
show the normalisation, gradient norms before clipping the gradient's scale, 30 steps of AdamW the rest.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.trl_gkd import make_trainer
from kd_launch.plan import TokenStores
from tests.runtime.conftest import Material
from tests.runtime.harness import make_layout, make_run, start_ranks

STEPS, BATCH, RATE = 30, 4, 1e-3


@pytest.fixture(scope="module")
def store(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the shared material as single documents, which is all that TRL's collator knows."""
    folder = tmp_path_factory.mktemp("single") / "train"
    folder.mkdir()
    for name in ("ids", "positions", "loss", "loss_tokens"):
        array = np.load(material.train / f"{name}.npy")
        if name == "positions":
            array[:] = np.arange(array.shape[1], dtype=array.dtype)
        np.save(folder / f"{name}.npy", np.tile(array, (4, 1) if array.ndim == 2 else 4))
    header = json.loads((material.train / "store.json").read_text())
    for key in ("sequences", "tokens", "loss_tokens", "documents"):
        header[key] *= 4
    header["bytes"] = {name: (folder / name).stat().st_size for name in header["bytes"]}
    (folder / "store.json").write_text(json.dumps(header))
    return folder


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_thirty_steps_equal_those_of_trl(tmp_path: Path, material: Material, store: Path, beta: float) -> None:
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=BATCH, accumulation=1)
    run_dir = make_run(
        tmp_path / "run", layout, material.teacher, material.student, TokenStores(train=str(store)),
        training__steps=STEPS, training__learning_rate=RATE, training__max_grad_norm=1.0,
        training__schedule="constant", distillation__beta=beta,
    )  # fmt: skip
    ranks = start_ranks(run_dir, layout)
    trl = tmp_path / "trl.jsonl"
    make_trainer(
        material.teacher, material.student, store / "ids.npy", trl, batch=BATCH, beta=beta, learning_rate=RATE,
        steps=STEPS, loss=store / "loss.npy",
    ).train()  # fmt: skip
    assert ranks.wait() == [0], ranks.outputs()
    expected = [json.loads(line) for line in trl.read_text().splitlines()]
    found = ranks.steps()
    assert len(found) == len(expected) == STEPS
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=1e-4), name
    assert found[-1]["loss"] < 0.9 * found[1]["loss"], "nothing was learnt, so nothing was compared"
