"""Whether the nodes see the files that a run needs: what can be told from here, by the file systems they lie on."""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, Level, Place, fine
from kd_launch.checks.place import python_of
from kd_launch.errors import KdLaunchError
from kd_launch.preparation import Inputs
from kd_launch.slurm.inventory import Node
from kd_launch.slurm.site import Site
from kd_launch.sources import model_sources

# Types of /proc/filesystems. In memory: nobody else sees it. On a disk of this host: others see it where this host
# exports it, which cannot be told from here. Over the network: others may mount it, too.
IN_MEMORY = frozenset(("tmpfs", "ramfs", "devtmpfs"))
ON_DISK = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "overlay", "vfat"))
ON_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "fhgfs", "beegfs_nodev", "ceph", "cifs", "smb3", "9p", "afs"),
        *("panfs", "wekafs", "pvfs2", "orangefs", "gfs2", "ocfs2", "glusterfs", "virtiofs", "dvs", "mmfs", "quobyte"),
        *("fuse.glusterfs", "fuse.ceph", "fuse.sshfs", "fuse.juicefs", "fuse.daos", "fuse.dfuse", "fuse.beegfs"),
    )
)
OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run"))  # noqa: S108
"""Every host has its own."""

SYSTEM_FOLDERS = (Path("/usr"), Path("/opt"), Path("/bin"))
"""Installed on every host alike, as a rule."""


@dataclass(frozen=True)
class Mount:
    """Where a file system stands in the tree."""

    point: Path
    type: str


@dataclass(frozen=True)
class Needed:
    """A path that the nodes must see."""

    what: str
    path: Path
    way_out: str


def check_shared(inputs: Inputs, components: Sequence[Component], site: Site, place: Place) -> Iterator[Finding]:
    """One finding for each path that the nodes may not see; a single one where they see all."""
    nodes = (node for one in components for node in one.nodes(site))
    elsewhere = next((node.name for node in nodes if not is_here(node, place)), None)
    if elsewhere is None:
        yield fine("files on the nodes", "the nodes are on this machine")
        return
    mounts, unseen = parse_mounts(place.mounts), 0
    for needed in _needed(inputs, components):
        level, says = judge(needed.path, mounts, site.config.get("TmpFS"))
        if level is not Level.OK:
            unseen += 1
            words = f"{needed.path}: {says}, and the job runs elsewhere, on {elsewhere} for one; {needed.way_out}"
            yield Finding(level, f"{needed.what} on the nodes", words)
    if not unseen:
        yield fine("files on the nodes", "run root, models and interpreter lie on network file systems")


def judge(path: Path, mounts: Sequence[Mount], tmp_fs: str = "") -> tuple[Level, str]:
    """How bad it is for a path that other hosts have to see, and why.

    Args:
        tmp_fs: Slurm's own idea of a folder for temporary files.
    """
    own = next((folder for folder in (*OWN_FOLDERS, Path(tmp_fs or "/tmp")) if path.is_relative_to(folder)), None)  # noqa: S108
    mount = mount_of(path, mounts)
    kind = mount.type if mount else ""
    if kind in ON_NETWORK:
        return Level.OK, f"is on {kind}"
    if kind in IN_MEMORY:
        return Level.FAIL, f"is in this host's memory ({kind})"
    if own is not None:
        return Level.FAIL, f"is in {own}, of which every host has its own"
    if any(path.is_relative_to(folder) for folder in SYSTEM_FOLDERS):
        return Level.NOTE, "is on a disk of this host, and has to be installed on all"
    if kind in ON_DISK:
        return Level.WARNING, f"is on a disk of this host ({kind}), which others see only if it is exported to them"
    return Level.NOTE, f"is on {kind or 'an unknown file system'}, of which nothing is known here"


def _needed(inputs: Inputs, components: Sequence[Component]) -> Iterator[Needed]:
    run_root = "set run_root in the cluster file to a folder that every node sees"
    yield Needed("run_root", Path(inputs.cluster.run_root), run_root)
    for model in dict.fromkeys(reversed(model_sources(inputs.spec))):
        try:
            folder = model.folder()
        except KdLaunchError:
            continue  # said where the models are looked at
        if folder is not None:
            way_out = "move it" if model.is_folder else "set HF_HOME in environment of the cluster file, and here"
            yield Needed(model.where, folder, f"{way_out} to a folder that every node sees")
    pools = {one.pool.name: one.pool for one in components if not (one.pool.container or inputs.cluster.container)}
    for python in dict.fromkeys(python_of(inputs, pool) for pool in pools.values()):
        if python.startswith("/"):
            yield Needed("python", Path(python), "set python in the cluster file to one that every node sees")


def is_here(node: Node, place: Place) -> bool:
    """Whether a node is this very machine, as all are where one machine is the whole cluster."""
    if place.host.partition(".")[0] in {name.partition(".")[0] for name in (node.host, node.address)}:
        return True
    address = place.address_of(node.address)
    return address is not None and ipaddress.ip_address(address).is_loopback


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Of /proc/self/mountinfo: the mount point is the fifth word, the type the first after a lone dash."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        if dash and len(before.split()) >= 5 and after.split():
            point = before.split()[4].encode().decode("unicode_escape")  # a blank is \040
            found.append(Mount(Path(point), after.split()[0]))
    return tuple(found)


def mount_of(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """The one a path lies on; of several at one place the last covers the others."""
    real = path.resolve()
    over = [mount for mount in mounts if real.is_relative_to(mount.point)]
    deepest = max((len(mount.point.parts) for mount in over), default=0)
    return next((mount for mount in reversed(over) if len(mount.point.parts) == deepest), None)
