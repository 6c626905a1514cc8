"""Before any weight is loaded: does every rank come, and does data flow wherever the run will send it?

Each wait has a deadline, which a thread watches: the wait itself is in C++, and a wait that torch gave up would break
its group. Each rank says in the store which check it is in, so that whoever runs out of time can tell who keeps the
others waiting, or between whom nothing flows.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from torch._C._distributed_c10d import Store

from kd_launch.errors import RunFailedError
from kd_launch.plan import Layout
from kd_launch.run_dir import RunDir
from kd_launch.runtime.culprit import LOOK_AT, Spot, View, first_open
from kd_launch.runtime.departure import Departure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.failures import Failure, lost_a_peer
from kd_launch.runtime.heartbeat import Progress, read_beats
from kd_launch.runtime.links import checks_of
from kd_launch.runtime.meeting import Address, MeetingError, read_address

MEETING_FACTOR = 5
"""Ranks start apart: a cold file system, a container that one node still pulls."""
GROUP_SECONDS_PER_RANK = 0.05
NEVER = timedelta(days=30)

Spots = Mapping[int, Spot | None]
"""By rank; None: it has not come."""


class PreflightError(RunFailedError):
    """The ranks do not reach each other."""


class Preflight:
    """One rank's part of it."""

    def __init__(
        self, run_dir: RunDir, place: Environment, layout: Layout, timeout: float, departure: Departure,
        progress: Progress,
    ) -> None:  # fmt: skip
        """
        Args:
            timeout: heartbeat_timeout_s of the cluster.
        """
        self._run_dir, self._place, self._layout, self._departure = run_dir, place, layout, departure
        self._timeout, self._progress = timeout, progress
        self.checks = checks_of(layout)
        self._store: Store | None = None
        self._address: Address | None = None

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around the way to the store, and `all_are_here`."""
        with self._in_time(0, MEETING_FACTOR * self._timeout):
            yield

    def all_are_here(self, store: Store, address: Address) -> None:
        """Returns when every rank has come.

        Raises:
            PreflightError: another process takes itself for this rank.
        """
        rank, self._store, self._address = self._place.rank, store, address
        if store.add(f"come/{rank}", 1) > 1:  # counted twice, it would stand for one that is missing
            raise PreflightError(f"rank {rank} on {self._place.host}: another process of this attempt is this rank")
        self._say(0, left=False)
        if store.add("come", 1) == self._place.world_size:
            store.set("all", "1")
        store.wait(["all"], NEVER)
        self._say(0, left=True)

    @contextmanager
    def check(self, number: int) -> Iterator[None]:
        """Around one of `checks`, on its members."""
        seconds = self._timeout
        if self.checks[number].kind == "groups":
            seconds += GROUP_SECONDS_PER_RANK * self._place.world_size
        self._say(number, left=False)
        try:
            with self._in_time(number, seconds):
                yield
        except RuntimeError as error:
            if lost_a_peer(error):
                raise
            raise PreflightError(f"{self.checks[number].what}: {error}; {LOOK_AT}") from error
        self._say(number, left=True)

    @contextmanager
    def _in_time(self, number: int, seconds: float) -> Iterator[None]:
        over = threading.Event()
        self._departure.start("preflight", lambda: self._watch(number, seconds, over))
        with self._progress.waiting(self.checks[number].what):
            try:
                yield
            finally:
                over.set()

    def _watch(self, number: int, seconds: float, over: threading.Event) -> None:
        """The work of a thread: ends this rank when the time is over and somebody is to blame."""
        before: Spots = {}
        waited = 0.0
        while not over.wait(seconds):
            waited += seconds
            spots = self._spots()
            # Whoever waits behind another check leaves it to those in it, unless nothing at all moves there.
            if spots is None or first_open(self.checks, spots) == number or spots == before:
                failure = self._failure(spots, waited)
                if failure is not None and not over.is_set():
                    noticed = f"{failure.error} (noticed by rank {self._place.rank} on {self._place.host})"
                    self._departure.fail(replace(failure, error=noticed), "lost_peer")
            before = spots or {}

    def _failure(self, spots: Spots | None, waited: float) -> Failure | None:
        place = self._place
        view = View(
            self._layout, self.checks, read_beats(self._run_dir, place.attempt), time.time(), waited,
            any(self._run_dir.start_record(attempt).exists() for attempt in range(1, place.attempt)),
        )  # fmt: skip
        if spots is not None:
            return view.culprit(spots)
        address = self._address or read_address(self._run_dir, place.attempt)
        return view.unreachable(place.rank, place.host, None if address is None else f"{address.host}:{address.port}")

    def _spots(self) -> Spots | None:
        """Where each rank is; None: nobody answers. By a client of its own, since the other one may be waiting."""
        if self._address is None:
            return None
        try:
            store = self._address.connect()
            keys = {rank: self._key(rank) for rank in range(self._place.world_size)}
            there = {rank: store.check([key]) for rank, key in keys.items()}
            return {rank: Spot.unpack(store.get(keys[rank]).decode()) if there[rank] else None for rank in keys}
        except (RuntimeError, MeetingError):
            return None

    def _say(self, number: int, *, left: bool) -> None:
        assert self._store is not None
        self._store.set(self._key(self._place.rank), Spot(number, left, self._place.host).pack())

    @staticmethod
    def _key(rank: int) -> str:
        return f"at/{rank}"
