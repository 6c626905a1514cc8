"""Who keeps the others waiting in the preflight: a judgement from where each rank says it is, and its heartbeats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kd_launch.plan import Layout
from kd_launch.runtime.failures import Failure, Kind
from kd_launch.runtime.heartbeat import STILL_SECONDS, Beat
from kd_launch.runtime.links import Check, rank_list

LOOK_AT = (
    "see NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (`environment` in the cluster file), host_suffix, and firewalls "
    "between the nodes"
)


@dataclass(frozen=True)
class Spot:
    """The check that a rank is in, or has left last."""

    check: int
    left: bool
    host: str

    def pack(self) -> str:
        return f"{self.check} {int(self.left)} {self.host}"

    @staticmethod
    def unpack(text: str) -> "Spot":
        check, left, host = text.split(" ", 2)
        return Spot(int(check), left == "1", host)

    def has_passed(self, check: int) -> bool:
        return self.check > check or (self.check == check and self.left)


def first_open(checks: Sequence[Check], spots: Mapping[int, Spot | None]) -> int | None:
    """The first check that not all of its members have passed: what is open after it may only wait for it."""
    for number, check in enumerate(checks):
        members = [spots[rank] for rank in check.members]
        if not all(spot is not None and spot.has_passed(number) for spot in members):
            return number
    return None


@dataclass(frozen=True)
class View:
    """What a rank whose time is over knows."""

    layout: Layout
    checks: Sequence[Check]
    beats: Mapping[int, Beat]
    now: float
    """Unix time."""
    waited: float
    """Seconds."""
    trained_before: bool
    """Whether an earlier attempt of the run came through: then nothing that is configured is wrong."""

    def culprit(self, spots: Mapping[int, Spot | None]) -> Failure | None:
        """The rank that keeps the others waiting, or one end of a link through which nothing flows; None: nobody."""
        number = first_open(self.checks, spots)
        if number is None:
            return None
        came = {rank: spot for rank, spot in spots.items() if spot is not None}
        if len(came) < len(spots):
            return self._absent(sorted(set(spots) - set(came)))
        check = self.checks[number]
        behind = [rank for rank in check.members if not came[rank].has_passed(number)]
        return self._late(check, [rank for rank in behind if came[rank].check < number], behind, came)

    def unreachable(self, rank: int, host: str, where: str | None) -> Failure:
        """Where rank 0's store does not answer this rank; `where` it should, None: rank 0 has not said.

        Args:
            rank: this one, on `host`.
        """
        if where is None:
            return self._absent([0])
        zero = self.beats.get(0)
        if zero is None or self._is_silent(zero):
            return self._failure("silent", 0, f"serves the meeting of all ranks and does not answer, {self._seen(0)}")
        words = (
            f"cannot reach the meeting of all ranks at {where}, on rank 0's node, within {self.waited:g} s; {LOOK_AT}"
        )
        return Failure(self._of_a_link(), rank, self.layout.role_of(rank), host, words)

    def _absent(self, missing: Sequence[int]) -> Failure:
        others = f", like {rank_list(missing[1:])}" if len(missing) > 1 else ""
        words = f"did not come to the meeting of all ranks within {self.waited:g} s{others}: {self._seen(missing[0])}"
        return self._failure("absent", missing[0], words)

    def _late(
        self, check: Check, not_there: Sequence[int], behind: Sequence[int], spots: Mapping[int, Spot]
    ) -> Failure:
        """Of a check that is not done: who did not come to it, else who stopped in it, else nobody is to blame."""
        silent = [rank for rank in (not_there or behind) if self._is_silent(self.beats.get(rank))]
        if silent:
            return self._failure("silent", silent[0], f"stopped before or in {check.what}: {self._seen(silent[0])}")
        if not_there:
            words = f"did not come to {check.what} within {self.waited:g} s: {self._seen(not_there[0])}"
            return self._failure("stuck", not_there[0], words)
        ranks = ", ".join(f"{rank} ({self.layout.role_of(rank)} on {spots[rank].host})" for rank in behind[:8])
        waited = f"no data came through within {self.waited:g} s"
        words = f"{check.what}: all came, but between ranks {ranks} {waited}; {LOOK_AT}"
        return Failure(self._of_a_link(), behind[0], self.layout.role_of(behind[0]), spots[behind[0]].host, words)

    def _of_a_link(self) -> Kind:
        """What is set up wrongly is so again in the next attempt; what has worked before may have broken down."""
        return "stuck" if self.trained_before else "raised"

    def _is_silent(self, beat: Beat | None) -> bool:
        return beat is None or self.now - beat.time > max(STILL_SECONDS, self.waited / 2)

    def _seen(self, rank: int) -> str:
        beat = self.beats.get(rank)
        if beat is None:
            return "it has given no sign of life; the log of its role and srun.log may tell whether it started"
        at = f" at {' < '.join(beat.where[:3])}" if beat.where else ""
        return f"its last heartbeat, {max(0.0, self.now - beat.time):.0f} s ago, found it{at}"

    def _failure(self, kind: Kind, rank: int, words: str) -> Failure:
        host = self.beats[rank].host if rank in self.beats else "unknown"
        return Failure(kind, rank, self.layout.role_of(rank), host, words)
