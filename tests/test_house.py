"""Who may import what, and that a login node gets along without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kd_launch

PACKAGE = Path(kd_launch.__file__).parent
HEAVY = ("torch", "transformers", "datasets", "numpy", "safetensors", "tokenizers")
# What code inside a job may know of the package around it: the plan's values, the run folder and the stores.
RUNTIME_MAY_IMPORT = {
    "kd_launch", "kd_launch.runtime", "kd_launch.errors", "kd_launch.architecture", "kd_launch.cluster",
    "kd_launch.spec", "kd_launch.plan", "kd_launch.run_dir", "kd_launch.tokens", "kd_launch.sources",
    "kd_launch.model_source", "kd_launch.weight_files", "kd_launch.decisive", "kd_launch.probe",
    "kd_launch.secret_names",
}  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "templates" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name_of(path: Path) -> str:
    parts = ("kd_launch", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_keep_to_the_house(path: Path) -> None:
    inside = "runtime" in path.relative_to(PACKAGE).parts
    for module in imports(path):
        if inside and module.startswith("kd_launch") and not module.startswith("kd_launch.runtime"):
            assert module in RUNTIME_MAY_IMPORT or module.rpartition(".")[0] in RUNTIME_MAY_IMPORT - {"kd_launch"}
        if not inside:
            assert not module.startswith("kd_launch.runtime"), "nothing imports the runtime"
            assert module.split(".")[0] not in HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "its first line says what it is for"
    assert text.count("\n") <= 330


def test_no_function_decides_formats_and_acts_at_once() -> None:
    long = [
        f"{name_of(path)}.{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "datasets", "numpy", "safetensors", "tokenizers"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from kd_launch.cli.__main__ import main
sys.argv = ["kd-launch", *sys.argv[1:]]
try:
    main()
finally:
    print(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers", "submitit"}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "configs/qwen3-14b-to-1.7b.yaml"], ["render", "configs/qwen3-14b-to-1.7b.yaml"]]
)
def test_the_command_line_works_without_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
