"""A private view of the machine's files: paths opened to a user, empty /tmp, names of the box's user and nodes.

It is a mount namespace, kept by one holder process; it ends with the last process in it and leaves no mount behind.
"""

import shlex
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

# What the box's jobs leave there must go with the box.
PRIVATE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def paths_to_open(needed: Iterable[Path], private: Iterable[Path] = PRIVATE) -> dict[Path, list[Path]]:
    """Folder that is covered -> what of it has to be reachable: private folders, and closed ones with needed paths.

    A closed folder is one that an ordinary user may not enter. Of one that is needed itself, it is all that lies in it.
    """
    covered: dict[Path, list[Path]] = {folder: [] for folder in private}
    for path in sorted({path.resolve() for path in needed}):
        way = [folder for folder in (*reversed(path.parents), path) if folder in covered or _is_closed(folder)]
        if way:
            covered.setdefault(way[0], []).extend(sorted(path.iterdir()) if way[0] == path else [path])
    return covered


def _is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & stat.S_IXOTH


def opening_commands(needed: Iterable[Path]) -> list[str]:
    """Shell lines that put an empty folder over each one that is covered and bind back only what is needed of it."""
    lines = []
    for folder, paths in paths_to_open(needed).items():
        # Held open by descriptors: under the new folder they could not be found by name any more.
        lines += [f"exec {{held[{i}]}}< {shlex.quote(str(path))}" for i, path in enumerate(paths)]
        mode = "1777" if folder in PRIVATE else "755"
        lines.append(f"mount -t tmpfs -o mode={mode} none {shlex.quote(str(folder))}")
        for i, path in enumerate(paths):
            target, parent = shlex.quote(str(path)), shlex.quote(str(path.parent))
            make = f"mkdir -p {target}" if path.is_dir() else f"mkdir -p {parent}; touch {target}"
            lines += [make, f'mount -c --bind "/proc/self/fd/${{held[{i}]}}" {target}', f"exec {{held[{i}]}}<&-"]
    return lines


def name_commands(folder: Path, user: str, uid: int, home: Path, nodes: Iterable[str]) -> list[str]:
    """Shell lines that make the user and the nodes known inside, and give each node a host name of its own."""
    etc = folder / "etc"
    etc.mkdir()
    nodes = tuple(nodes)
    # "*": no password, and no entry of /etc/shadow to look for.
    added = {
        "passwd": f"{user}:*:{uid}:{uid}::{home}:/bin/bash\n",
        "group": f"{user}:*:{uid}:\n",
        "hosts": "".join(f"127.0.1.{10 + i} {node}\n" for i, node in enumerate(nodes)),
    }
    for name, text in added.items():
        (etc / name).write_text(Path("/etc", name).read_text().rstrip("\n") + "\n" + text)
    lines = [f"mount --bind {shlex.quote(str(etc / name))} /etc/{name}" for name in added]
    (folder / "uts").mkdir()
    for node in nodes:
        (folder / "uts" / node).touch()
        lines.append(f"unshare --uts={shlex.quote(str(folder / 'uts' / node))} hostname {node}")
    return lines


def hold(commands: Iterable[str], log: Path) -> "subprocess.Popen[str]":
    """The holder of a new view in which the commands have run."""
    script = "\n".join(["set -e", "umask 022", *commands, "echo ready", "exec sleep infinity"])
    with log.open("w") as errors:
        holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/", start_new_session=True,
        )  # fmt: skip
    assert holder.stdout is not None
    if holder.stdout.readline() != "ready\n":
        holder.wait()
        raise RuntimeError(f"the box needs root that may mount (CAP_SYS_ADMIN): {log.read_text().strip()}")
    return holder
