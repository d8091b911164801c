"""Run: leads through a scenario: a pass without faults, load, faults, recovery, the end."""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass

from chaos.invariants import left_over
from chaos.load import Load, golden_outputs
from chaos.record import Record
from chaos.scenario import Scenario
from chaos.stage import Say, Stage, wanted_now
from chaos.watch import Watch, look
from expertmesh import Connection, ControlClient

# Beyond a request's own deadline.
GRACE = 5.0
# The server tells what it holds only when it is asked.
LOOK_AGAIN = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """A live server: its GenerationService and its ControlService."""

    address: str
    control_address: str
    connection: Connection


def run_scenario(scenario: Scenario, target: Target, say: Say) -> Record:
    """Raises ConfigError for a server that is not what the scenario needs, ClientError and WorldError where
    it can't go on. Whatever ends it, Ctrl-C as well, faults are undone and the load is ended."""
    with ControlClient(target.control_address, connection=target.connection) as control:
        return _Run(scenario, target, control, say).run()


class _Run:
    def __init__(self, scenario: Scenario, target: Target, control: ControlClient, say: Say) -> None:
        self._scenario, self._target, self._control, self._say = scenario, target, control, say
        self._record = Record(scenario, target.address)

    def run(self) -> Record:
        scenario, record = self._scenario, self._record
        first = look(self._control.topology(include_experts=True), time.monotonic())
        wanted = wanted_now(first, scenario.setup)
        record.golden = self._golden("without a fault")
        load = Load(self._target.address, self._target.connection, scenario.load)
        watch = Watch(self._control, first, wanted)
        with ExitStack() as ending:
            record.began = time.monotonic()
            load.start()
            ending.callback(load.stop, 0.0)
            watch.start()
            ending.callback(watch.close)
            self._say(f"load for {scenario.course.baseline:g} s without a fault")
            load.wait(scenario.course.baseline)
            stage = Stage(
                self._control,
                load,
                watch,
                seed=scenario.course.seed,
                patience=scenario.expect.restored_within,
                say=self._say,
                zero=record.began,
            )
            ending.callback(stage.close)
            self._disturb(stage, load)
            self._finish(stage, load, watch)
        self._await_idle()
        if record.exchange is not None:
            record.golden_after = self._golden("with the exchanged expert")
        return record

    def _golden(self, when: str) -> list[list[int]]:
        spec = self._scenario.load
        self._say(f"{spec.requests} requests of {spec.tokens} tokens {when}, to know what is right")
        return asyncio.run(golden_outputs(self._target.address, self._target.connection, spec))

    def _disturb(self, stage: Stage, load: Load) -> None:
        course, soak = self._scenario.course, self._scenario.soak
        if soak is None:
            stage.play(self._scenario.events)
        else:
            stage.soak(soak, course.duration - course.baseline - course.settle)
        passed = time.monotonic() - self._record.began
        load.wait(max(course.settle, course.duration - passed))

    def _finish(self, stage: Stage, load: Load, watch: Watch) -> None:
        record = self._record
        record.ended = time.monotonic()
        stage.close()
        load.stop(self._scenario.load.timeout + GRACE)
        record.streams, record.num_sent = load.streams, load.num_sent
        record.faults, record.exchange = stage.faults, stage.exchange
        record.worker_losses = watch.num_losses

    def _await_idle(self) -> None:
        """Until the server holds nothing of any request any more, or for as long as that may take."""
        began = time.monotonic()
        deadline = began + self._scenario.expect.idle_within
        while True:
            load = self._control.load()
            held = list(left_over(load.running_requests, load.waiting_requests, load.kv_cache_usage))
            now = time.monotonic()
            if not held or now >= deadline:
                break
            time.sleep(LOOK_AGAIN)
        self._record.left_over = held
        self._record.idle_after = None if held else now - began
