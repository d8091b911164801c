"""Changes: what somebody waits for until all that is wanted is there, and all that leave have left."""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from expert_workers.status import Scaled
from expert_workers.supervision.worker_state import LOCAL, Keys, Member
from moe_model.errors import ExpertMeshError


@dataclass(slots=True)
class Change:
    """`keys` are modules that it adds; `is_start`: the first, of which any failure is the end."""

    num_before: int = 0
    keys: Keys = frozenset()
    is_start: bool = False
    num_moved: int = 0
    started: float = field(default_factory=time.monotonic)
    future: "Future[Scaled]" = field(default_factory=Future)


class Changes:
    """Belongs to the supervisor's thread."""

    def __init__(self) -> None:
        self._open: list[Change] = []
        self._have_begun_badly = False

    @property
    def is_starting(self) -> bool:
        return any(change.is_start for change in self._open)

    @property
    def have_begun_badly(self) -> bool:
        """Whether the start has failed."""
        return self._have_begun_badly

    def add(self, change: Change) -> None:
        self._open.append(change)

    def moved(self, num_modules: int) -> None:
        for change in self._open:
            change.num_moved += num_modules

    def fail_start(self, error: ExpertMeshError) -> None:
        """If there is one under way."""
        self._have_begun_badly |= self.is_starting
        for change in [change for change in self._open if change.is_start]:
            self._fail(change, error)

    def fail_new(self, loading: Keys, error: ExpertMeshError) -> Keys:
        """Those that add modules of `loading`, which failed, have failed too; returns what they add."""
        failed = [change for change in self._open if change.keys & loading]
        for change in failed:
            self._fail(change, error)
        return frozenset(key for change in failed for key in change.keys)

    def settle(self, members: Iterable[Member], wanted: Mapping[int, Keys]) -> list[Change]:
        """Tells those who wait if all is as it shall be; returns them."""
        workers = [m for m in members if m.rank != LOCAL]
        if not all(_is_settled(m, wanted.get(m.rank, frozenset())) for m in workers):
            return []
        num_ready = sum(m.is_ready for m in workers)
        settled, self._open = self._open, []
        now = time.monotonic()
        for change in settled:
            scaled = Scaled(change.num_before, num_ready, change.num_moved, now - change.started)
            change.future.set_result(scaled)
        return settled

    def _fail(self, change: Change, error: ExpertMeshError) -> None:
        self._open.remove(change)
        change.future.set_exception(error)


def _is_settled(member: Member, wish: Keys) -> bool:
    """Whether it is as it shall be. One that is lost, and whose part others have, is waited for no longer."""
    if member.is_leaving:
        return False
    return wish <= member.held if member.is_ready else member.lost_at is not None and not wish
