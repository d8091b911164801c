"""Stage: lets the events of a scenario happen, one after the other, and notes what became of each."""

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from chaos import events as ev
from chaos.faults import Faults
from chaos.load import Load
from chaos.processes import FaultError, is_local
from chaos.record import FaultRecord
from chaos.scenario import Setup, Soak
from chaos.watch import Look, Wanted, Watch, look
from expertmesh import ClientError, ControlClient
from moe_model.errors import ConfigError

Say = Callable[[str], None]


class Stage:
    """For one thread. `faults` holds the record of each disturbance so far."""

    def __init__(
        self,
        control: ControlClient,
        load: Load,
        watch: Watch,
        *,
        seed: int,
        patience: float,
        say: Say,
        zero: float,
    ) -> None:
        """`patience`: seconds in which all must be as before, after a disturbance. What is said has seconds
        since `zero`."""
        self.faults: list[FaultRecord] = []
        self.exchange: tuple[float, float] | None = None
        self._control, self._load, self._watch = control, load, watch
        self._replicas = watch.wanted.replicas
        self._breaker = Faults(load.wait)
        # As a text it is hashed: the first draws of neighbouring numbers are much alike.
        self._rng = random.Random(str(seed))
        self._patience, self._say, self._zero = patience, say, zero
        self._began, self._before = time.monotonic(), time.monotonic()
        self._tokens = load.num_tokens

    def play(self, events: tuple[ev.Event, ...]) -> None:
        """Raises WorldError, LoadError; a fault that fails is noted and ends the play."""
        for event in events:
            self._wait_for(event)
            self._do(event)
            self._before = time.monotonic()
            if self.faults and self.faults[-1].problem:
                return
        self._wait_restored(self._patience)

    def soak(self, soak: Soak, seconds: float) -> None:
        """Random faults for so long. A fault that fails ends it. Raises WorldError, LoadError."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._do(ev.KINDS[self._rng.choice(soak.faults)]())
            if not self._wait_restored(self._patience) or self.faults[-1].problem:
                return
            self._load.wait(min(self._rng.uniform(*soak.pause), max(0.0, end - time.monotonic())))

    def close(self) -> None:
        """Undoes what still lasts."""
        self._breaker.close()

    def _wait_for(self, event: ev.Event) -> None:
        if event.after_tokens is not None:
            self._load.wait_tokens(self._tokens + event.after_tokens)
        elif event.at is not None:
            self._load.wait(self._began + event.at - time.monotonic())
        elif event.after is not None:
            self._load.wait(self._before + event.after - time.monotonic())

    def _do(self, event: ev.Event) -> None:
        match event:
            case ev.WorkerEvent():
                self._break(event)
            case ev.RollingRestart():
                self._restart_all(event.timeout)
            case ev.WaitReady():
                self._wait_restored(event.timeout)
            case ev.Scale():
                self._noted(FaultRecord("scale", time.monotonic()), lambda: self._scale(event))
            case ev.Replace():
                self._noted(FaultRecord("replace", time.monotonic()), lambda: self._replace(event))
            case ev.Exec():
                self._noted(FaultRecord("exec", time.monotonic()), lambda: _exec(event))

    def _break(self, event: ev.WorkerEvent) -> None:
        workers = {worker.rank: worker for worker in self._control.topology()}
        rank = self._rng.choice(sorted(workers)) if event.rank == "random" else event.rank
        record = FaultRecord(event.do, time.monotonic(), rank)

        def broken() -> str:
            worker = workers.get(rank)
            if worker is None:
                raise FaultError(f"there is no worker {rank}: {sorted(workers)} are there")
            if not is_local(worker.host):
                raise FaultError(f"worker {rank} runs on {worker.host}; start this command there")
            record.pid = worker.pid
            return self._breaker.do(event, worker.pid, rank)

        if isinstance(event, ev.Cont):
            # The end of a disturbance, not one.
            record.wants_restored = False
        self._noted(record, broken)

    def _restart_all(self, timeout: float) -> None:
        for rank in sorted(worker.rank for worker in self._control.topology()):
            self._break(ev.Kill(rank=rank))
            if self.faults[-1].problem or not self._wait_restored(timeout):
                return

    def _scale(self, event: ev.Scale) -> str:
        done = self._control.scale(event.workers, timeout=event.timeout)
        now = look(self._control.topology(include_experts=True), time.monotonic())
        replicas = min(self._replicas, event.workers)
        self._watch.wanted = replace(self._watch.wanted, workers=event.workers, replicas=replicas)
        if len(now.pids) != event.workers:
            raise FaultError(f"there are {len(now.pids)} workers, not {event.workers}")
        return f"{done.num_workers_before} to {done.num_workers} workers, {done.modules_moved} modules moved"

    def _replace(self, event: ev.Replace) -> str:
        began = time.monotonic()
        done = self._control.replace_expert(event.layer, event.expert, event.path)
        self.exchange = (began, time.monotonic())
        return f"layer {event.layer}, expert {event.expert} is version {done.expert.version}"

    def _noted(self, record: FaultRecord, do: Callable[[], str]) -> None:
        name = record.do if record.rank is None else f"{record.do} worker {record.rank}"
        self._tell(name)
        self.faults.append(record)
        try:
            record.proof = do()
            self._tell(record.proof)
        except (FaultError, ClientError) as error:
            record.problem = str(error)
            self._tell(f"it did not happen: {error}")
        record.ended = time.monotonic()

    def _wait_restored(self, timeout: float) -> bool:
        """Whether all is as before, within the time; notes since when, for each fault."""
        waiting = [each for each in self.faults if each.wants_restored and each.restored is None]
        since = max((each.ended or each.began for each in waiting), default=time.monotonic())
        seen = self._watch.wait_restored(since, timeout)
        for each in waiting:
            each.restored = self._watch.restored_since(each.ended or each.began)
            if each.restored is None and not each.problem:
                each.problem = f"not as before within {timeout:g} s"
        self._tell("not as before" if seen is None else "all is as before")
        return seen is not None

    def _tell(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._zero:8.2f} s  {line}")


def _exec(event: ev.Exec) -> str:
    try:
        done = subprocess.run(event.command, timeout=event.timeout, check=False, capture_output=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FaultError(f"exec: {error}") from None
    if done.returncode:
        raise FaultError(f"exec: {event.command[0]} ended with {done.returncode}")
    return f"{event.command[0]} ended with 0"


def wanted_now(now: Look, setup: Setup) -> Wanted:
    """What is there, which must be whole and what the scenario needs. Raises ConfigError."""
    if len(now.whole) != len(now.pids) or not now.pids:
        raise ConfigError(f"of {len(now.pids)} expert workers {len(now.whole)} are ready; start when all are")
    if setup.workers not in (None, len(now.pids)):
        raise ConfigError(
            f"the scenario needs {setup.workers} expert workers, the server has {len(now.pids)}"
        )
    if now.replicas < (setup.replicas or 0):
        raise ConfigError(
            f"the scenario needs each expert on {setup.replicas} workers, one is on {now.replicas}"
        )
    if now.replicas > (setup.max_replicas or now.replicas):
        raise ConfigError(
            f"the scenario needs experts on {setup.max_replicas} workers, each is on {now.replicas}"
        )
    return Wanted(len(now.pids), len(now.copies), now.replicas)
