"""Copies the Python standard library's own source, real text on every machine, into two folders of text files.

    python configs/quickstart/make_data.py FOLDER

FOLDER/train and FOLDER/eval appear whole or not at all. Which of the two a file belongs to follows from its name
alone, so text that the shipped teacher never saw stays held out under every Python version.
"""

import hashlib
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

# Of a held-out file this much, from its middle, is enough to measure on and quick to evaluate.
EXCERPT = 512
SKIPPED = {
    "__pycache__", "test", "tests", "site-packages", "idlelib", "lib2to3", "encodings", "pydoc_data", "ensurepip"
}  # fmt: skip


def held_out(name: str) -> bool:
    """One file in twenty, by its name."""
    return hashlib.sha256(name.encode()).digest()[0] % 20 == 0


def source_files(library: Path) -> list[Path]:
    """The library's .py files in a fixed order, without its tests and its tables of characters."""
    found = (path for path in library.rglob("*.py") if not SKIPPED & set(path.relative_to(library).parts))
    return sorted(found, key=lambda path: path.relative_to(library).as_posix())


def write_split(library: Path, folder: Path) -> dict[str, int]:
    """Writes each readable file below `folder`/train or `folder`/eval; returns how many went where."""
    counts = {"train": 0, "eval": 0}
    for path in source_files(library):
        name = path.relative_to(library).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            split = "eval" if held_out(name) else "train"
            counts[split] += 1
            if split == "eval":
                text = text[max(0, len(text) // 2 - EXCERPT // 2) :][:EXCERPT]
            (folder / split / f"{name.replace('/', '.')}.txt").write_text(text, encoding="utf-8")
    return counts


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    if (target / "train").is_dir() and (target / "eval").is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for split in ("train", "eval"):
            (partial / split).mkdir()
        counts = write_split(Path(sysconfig.get_paths()["stdlib"]), partial)
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{target}: {counts['train']} files to train on, {counts['eval']} held out", file=sys.stderr)


if __name__ == "__main__":
    main()
