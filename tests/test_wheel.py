"""The built wheel renders without the sources: the templates are in it, and rendering needs no torch and no Slurm."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from render_cases import CASES, golden_path

ROOT = Path(__file__).parent.parent
CASES_FILE = Path(__file__).with_name("render_cases.py")
# Runs render_cases.py as a program, then says where the package came from and what it brought along.
PROGRAM = """
import runpy, sys
cases, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(cases, run_name="__main__")
import kd_launch
print(kd_launch.__file__)
heavy = {"torch", "transformers", "datasets", "submitit", "typer"}
print(*sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (packed,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_renders_every_golden_file(wheel: Path, tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(wheel)}
    rendered = subprocess.run(
        [sys.executable, "-c", PROGRAM, CASES_FILE, tmp_path],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert rendered.returncode == 0, rendered.stderr
    package, brought = rendered.stdout.splitlines()
    assert Path(package) == wheel / "kd_launch/__init__.py"
    assert brought == ""
    for name in CASES:
        golden = golden_path(name)
        assert (tmp_path / golden.name).read_text() == golden.read_text(), name


def test_the_wheel_holds_all_data_and_no_tests(wheel: Path) -> None:
    def files(folder: Path, pattern: str) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if "__pycache__" not in path.parts}

    assert files(wheel / "kd_launch/slurm_templates", "*") == files(ROOT / "slurm_templates", "*")
    for pattern in ("*.py", "*.yaml"):
        assert files(wheel / "kd_launch", pattern) == files(ROOT / "kd_launch", pattern)
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {"kd_launch"}
