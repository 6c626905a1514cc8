"""Clusters for the tests, each started once in a session, and a user's projects on them."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.slurm import slow_failures
from tests.slurm.box import Box, why_not_here
from tests.slurm.projects import Project, make_models, write_project
from tests.slurm.setup import Setup
from tests.slurm.trials import Sent

SLOW = "test_slow_failures.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes Slurm ten minutes is asked for last."""
    items.sort(key=lambda item: item.path.name == SLOW)


@pytest.fixture(scope="session")
def box_with() -> Iterator[Callable[[Setup], Box]]:
    """The session's cluster of a setup; a missing program is a failure in CI and a reason to skip elsewhere."""
    problem = why_not_here()
    if problem is not None:
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)
    with ExitStack() as running:
        boxes: dict[Setup, Box] = {}

        def start(setup: Setup) -> Box:
            if setup not in boxes:
                boxes[setup] = running.enter_context(Box()).start(setup)
            return boxes[setup]

        yield start


@pytest.fixture(scope="session")
def box(box_with: Callable[[Setup], Box]) -> Box:
    """The cluster of the default setup."""
    return box_with(Setup())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `teacher` and `student` that can really be trained."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def project(box: Box, models: Path) -> Project:
    """A user's project of this test on the default cluster, in a folder whose name needs quoting."""
    return write_project(box, f'it\'s "place" {sum(1 for _ in box.home.iterdir())}', models)


@pytest.fixture(scope="session", autouse=True)
def slow(request: pytest.FixtureRequest, box_with: Callable[[Setup], Box]) -> "Future[Mapping[str, Sent]] | None":
    """Begins with the session's first test on a cluster, where it will be asked for."""
    if any(item.path.name == SLOW for item in request.session.items):
        return slow_failures.start(box_with(slow_failures.SETUP))
    return None
