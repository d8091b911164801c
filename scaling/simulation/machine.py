"""Cores that processes of one machine share: processor sharing, and quotas as Linux's control groups do it.

A task is so many seconds of work by so many threads, alone. Where the tasks of a machine together have more
threads than it has cores, every thread gets an equal part of them. A task may want more of the machine than
its threads: one thread that reads weights as fast as memory gives them leaves the others little, so its
`weight` is what it would take of all cores to get as far as quickly. A group of tasks (a process, a
container) may have a quota: of each period it computes as long as its budget lasts, then it stands still
until the next one begins (Linux, Documentation/scheduler/sched-bwc.rst: 100 ms by default).
"""

from heapq import heappop, heappush
from itertools import count
from math import inf

from simpy import Environment, Event

USUAL_PERIOD_S = 0.1
# Below a nanosecond there is nothing left to do: what rounding leaves must not come back for ever.
_EPSILON = 1e-9


class Group:
    """Tasks that share a quota, of each `period` in seconds. `used`: seconds of cores that they have had."""

    def __init__(self, quota: float | None, period: float, now: float) -> None:
        self.period = period
        self.limit(quota, now)
        self.is_paused = False
        self.used = 0.0
        self.clock = 0.0
        self.demand = self.weight = 0.0
        self.tasks: list[tuple[float, int, float, float, Event]] = []

    def limit(self, quota: float | None, now: float) -> None:
        self.quota = quota
        self.budget = inf if quota is None else quota * self.period
        self.ends = now + self.period

    def renew(self, now: float) -> None:
        """Its budget, where a period has begun."""
        if self.quota is not None and now >= self.ends - _EPSILON:
            self.budget = self.quota * self.period
            self.ends += self.period * (1 + int((now - self.ends + _EPSILON) / self.period))

    @property
    def runs(self) -> bool:
        return bool(self.tasks) and not self.is_paused and self.budget > _EPSILON

    def advance(self, seconds: float, rate: float, share: float) -> None:
        """`rate`: how far tasks get, of what they would alone; `share`: of its threads' time, what they run.
        A thread that waits for memory runs, and its quota pays."""
        if self.runs:
            self.clock += seconds * rate
            self.used += seconds * share * self.demand
            self.budget -= seconds * share * self.demand

    def pop_done(self) -> list[Event]:
        done = []
        while self.tasks and self.tasks[0][0] <= self.clock + _EPSILON:
            _, _, threads, weight, event = heappop(self.tasks)
            self.demand -= threads
            self.weight -= weight
            done.append(event)
        if not self.tasks:
            self.demand = self.weight = 0.0
        return done


class Cores:
    """One machine's, as many as `num`, which may be a part of one."""

    def __init__(self, env: Environment, num: float) -> None:
        self.num = num
        self._env = env
        self._groups: list[Group] = []
        self._numbers = count()
        self._at = 0.0
        self._rate = self._share = 1.0
        self._alarm = 0

    def group(self, quota: float | None = None, period: float = USUAL_PERIOD_S) -> Group:
        self._groups.append(Group(quota, period, self._env.now))
        return self._groups[-1]

    def run(self, group: Group, seconds: float, threads: float, weight: float = 0.0) -> Event:
        """Happens when the work is done. `seconds`: of these threads, with nothing else on the machine;
        `weight`: in cores, at least as many as threads."""
        event = Event(self._env)
        if seconds <= 0:
            return event.succeed()
        self._advance()
        threads = min(threads, self.num)
        weight = min(max(weight, threads), self.num)
        heappush(group.tasks, (group.clock + seconds, next(self._numbers), threads, weight, event))
        group.demand += threads
        group.weight += weight
        self._arm()
        return event

    def pause(self, group: Group, *, is_paused: bool) -> None:
        self._advance()
        group.is_paused = is_paused
        self._arm()

    def limit(self, group: Group, quota: float | None) -> None:
        """Another quota, from now on."""
        self._advance()
        group.limit(quota, self._env.now)
        self._arm()

    def clear(self, group: Group) -> None:
        """Its process is gone: what it had to do is never done."""
        self._advance()
        group.tasks.clear()
        group.demand = group.weight = 0.0
        self._arm()

    def _advance(self) -> None:
        now = self._env.now
        if now > self._at:
            for group in self._groups:
                group.advance(now - self._at, self._rate, self._share)
            self._at = now
        for group in self._groups:
            group.renew(now)

    def _arm(self) -> None:
        """Shares the cores out anew, and wakes up when that changes."""
        running = [group for group in self._groups if group.runs]
        weight = sum(group.weight for group in running)
        threads = sum(group.demand for group in running)
        self._rate = min(1.0, self.num / weight) if weight else 1.0
        self._share = min(1.0, self.num / threads) if threads else 1.0
        waits = [(group.tasks[0][0] - group.clock) / self._rate for group in running]
        limited = [group for group in self._groups if group.quota is not None and group.tasks]
        waits += [g.ends - self._at for g in limited]
        waits += [g.budget / (g.demand * self._share) for g in limited if g.runs]
        self._alarm += 1
        if waits:
            alarm, timeout = self._alarm, self._env.timeout(max(min(waits), 0.0))
            timeout.callbacks.append(lambda _: self._wake(alarm))

    def _wake(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._advance()
        done = [event for group in self._groups for event in group.pop_done()]
        self._arm()
        for event in done:
            event.succeed()
