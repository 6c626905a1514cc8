"""How the ranks of one attempt find each other: a store on rank 0's host, and a file that says where it is.

The port is one that the system has free, so two runs on one node never collide. The keys begin with a secret that only
stands in the file, whose folder is the attempt's: a process of another attempt or job cannot take part.
"""

import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from kd_launch.cluster import Cluster
from kd_launch.errors import RunFailedError
from kd_launch.run_dir import RunDir, read_json, write_json
from kd_launch.runtime.environment import Environment

# Ranks may wait for each other while one of them loads a large model; death of a peer is noticed at once all the same.
PATIENCE = timedelta(minutes=30)
CONNECT = timedelta(seconds=10)


OURS = "this attempt's"
"""The key by which a store is recognised, under the secret."""


class MeetingError(RunFailedError):
    """The ranks cannot reach the store."""


@dataclass(frozen=True)
class Address:
    """Where the store of an attempt is."""

    host: str
    port: int
    secret: str

    def connect(self) -> Store:
        """A client of its own.

        Raises:
            RuntimeError: torch's words: nobody answers there.
            MeetingError: another job's store does.
        """
        client = TCPStore(self.host, self.port, is_master=False, timeout=CONNECT)
        client.set_timeout(PATIENCE)
        store = PrefixStore(self.secret, client)
        if not store.check([OURS]):  # its rank 0 wrote it before anybody could know the address
            raise MeetingError(
                f"the store at {self.host}:{self.port} is not this attempt's: rank 0 of it has ended, and another job "
                "has taken its port; see the log of rank 0"
            )
        return store


def meeting_host(cluster: Cluster, hostname: str) -> str:
    """How other ranks reach this one: by its host name, on a local cluster by the loopback address, since the name of
    a laptop or container may resolve to nothing.

    A site's suffix names another interface of the node, so it follows the node's name, before any domain.
    """
    if cluster.scheduler == "local":
        return "127.0.0.1"
    return hostname.split(".")[0] + cluster.host_suffix if cluster.host_suffix else hostname


def meet(place: Environment, run_dir: RunDir, cluster: Cluster) -> tuple[Store, Address]:
    """The store of this attempt, which rank 0 serves on its own host. The others wait for it as long as they live.

    Raises:
        MeetingError: rank 0 cannot reach itself, or another job's store answers in its place.
    """
    if place.rank == 0:
        return _serve(run_dir, place, meeting_host(cluster, socket.gethostname()))
    while True:  # whoever counts the time ends it
        address = read_address(run_dir, place.attempt)
        if address is not None:
            with suppress(RuntimeError):  # the file is older than the rank 0 that now starts, or nobody gets through
                return address.connect(), address
        time.sleep(0.05)


def read_address(run_dir: RunDir, attempt: int) -> Address | None:
    """None: rank 0 has not written it yet."""
    found = read_json(run_dir.store_address(attempt))
    return None if found is None else Address(str(found["host"]), int(str(found["port"])), str(found["secret"]))


def _serve(run_dir: RunDir, place: Environment, host: str) -> tuple[Store, Address]:
    try:
        server = TCPStore(host, 0, is_master=True, timeout=CONNECT, wait_for_workers=False)
    except RuntimeError as error:
        raise MeetingError(
            f"rank 0 on {place.host} cannot reach itself as '{host}': {error}; does the name resolve there? "
            "See host_suffix in the cluster file"
        ) from error
    server.set_timeout(PATIENCE)
    address = Address(host, server.port, secrets.token_hex(16))
    store = PrefixStore(address.secret, server)
    store.set(OURS, "1")
    known = {"host": host, "port": address.port, "secret": address.secret, "node": place.host}
    write_json(run_dir.store_address(place.attempt), known, mode=0o600)
    return store, address
