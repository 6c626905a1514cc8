"""Models and data that the tests of the runtime share."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kd_launch.plan import TokenStores
from tests.runtime.harness import make_model, make_store


@dataclass(frozen=True)
class Material:
    teacher: Path
    student: Path
    untied_student: Path
    padded_student: Path
    """Vocabulary padded to a multiple of 16."""
    tokens: TokenStores
    train: Path


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A teacher, students, and data whose first four rows, a whole micro-batch in every layout, have no loss token."""
    folder = tmp_path_factory.mktemp("material")
    train = make_store(folder / "train", 32, empty_rows=(0, 1, 2, 3))
    held_out = make_store(folder / "eval", 5, seed=3)
    return Material(
        make_model(folder / "teacher", seed=1, hidden_size=40),
        make_model(folder / "student", seed=2, tie_word_embeddings=True),
        make_model(folder / "untied", seed=2),
        make_model(folder / "padded", seed=2, vocabulary=112),
        TokenStores(train=str(train), eval=str(held_out)),
        train,
    )
