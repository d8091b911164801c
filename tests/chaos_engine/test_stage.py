"""Events happen in order and at their time; what fails is noted, and ends the play."""

import subprocess
from collections.abc import Iterator
from typing import cast

import pytest

from chaos import events as ev
from chaos.load import Load
from chaos.scenario import Soak
from chaos.stage import Stage
from chaos.watch import Wanted, Watch, look
from expertmesh import ControlClient
from tests.chaos_engine.cluster import LOST, Cluster, FakeLoad, worker
from tests.chaos_engine.victims import victim


class Scene:
    """A stage on two workers, of which worker 1 is a real process."""

    def __init__(self, process: subprocess.Popen[str], seed: int = 0) -> None:
        self.process = process
        self.cluster = Cluster(worker(0), worker(1, pid=process.pid))
        self.load = FakeLoad()
        self.said: list[str] = []
        control = cast(ControlClient, self.cluster)
        self.watch = Watch(control, look(self.cluster.workers, 0.0), Wanted(2, 2, 2))
        self.watch.start()
        self.stage = Stage(
            control,
            cast(Load, self.load),
            self.watch,
            seed=seed,
            patience=0.5,
            say=self.said.append,
            zero=0.0,
        )

    @property
    def done(self) -> list[tuple[str, int | None, str]]:
        return [(fault.do, fault.rank, fault.problem) for fault in self.stage.faults]

    def close(self) -> None:
        self.stage.close()
        self.watch.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with victim() as process:
        scene = Scene(process)
        yield scene
        scene.close()


def test_a_fault_with_its_proof_and_its_recovery(scene: Scene) -> None:
    scene.stage.play((ev.Stall(rank=1, seconds=0.0, times=2, after_tokens=50),))
    (fault,) = scene.stage.faults
    assert scene.load.token_waits == [150], "50 more than there were at the beginning"
    assert fault.pid == scene.process.pid
    assert "stopped 2 times" in fault.proof
    assert fault.restored is not None
    assert fault.ended is not None
    assert fault.began <= fault.ended <= fault.restored
    assert "all is as before" in scene.said[-1]


def test_times_are_from_the_beginning_or_from_the_event_before(scene: Scene) -> None:
    stall = ev.Stall(rank=1, seconds=0.0)
    scene.stage.play((ev.WaitReady(at=30.0), ev.WaitReady(after=5.0), stall))
    first, second, *_ = scene.load.waits
    assert 29.0 < first <= 30.0
    assert 4.0 < second <= 5.0


def test_a_worker_that_stays_away_is_a_problem(scene: Scene) -> None:
    scene.stage.play((ev.Kill(rank=1),))
    assert scene.done == [("kill", 1, "not as before within 0.5 s")]
    assert "not as before" in scene.said[-1]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (ev.Kill(rank=7), "there is no worker 7: [0, 1] are there"),
        (ev.Kill(rank=0), "is not an expert worker's; it is left alone"),
    ],
)
def test_a_fault_that_cannot_be_ends_the_play(scene: Scene, event: ev.Event, said: str) -> None:
    scene.stage.play((event, ev.Kill(rank=1)))
    ((_, _, problem),) = scene.done
    assert said in problem
    assert scene.process.poll() is None


def test_another_machines_worker_is_left_alone(scene: Scene) -> None:
    scene.cluster.workers[1] = worker(1, pid=scene.process.pid, host="192.0.2.1")
    scene.stage.play((ev.Kill(rank=1),))
    assert scene.done == [("kill", 1, "worker 1 runs on 192.0.2.1; start this command there")]
    assert scene.process.poll() is None


def test_scaling_changes_what_is_wanted(scene: Scene) -> None:
    scene.stage.play((ev.Scale(workers=3), ev.Scale(workers=1), ev.Scale(workers=2)))
    assert scene.done == [("scale", None, "")] * 3
    assert [fault.proof for fault in scene.stage.faults] == [
        "2 to 3 workers, 2 modules moved",
        "3 to 1 workers, 2 modules moved",
        "1 to 2 workers, 2 modules moved",
    ]
    assert scene.watch.wanted == Wanted(2, 2, 2), "again as many holders as there were"


def test_an_exchange_is_noted_with_its_time(scene: Scene) -> None:
    scene.stage.play((ev.Replace(layer=0, expert=1, path="file"),))
    assert scene.cluster.replaced == [(0, 1, "file")]
    assert scene.stage.exchange is not None
    begin, end = scene.stage.exchange
    assert begin <= end


def test_a_rolling_restart_waits_for_each(scene: Scene) -> None:
    """Worker 0 is this very process, which is left alone: worker 1 is not touched after that."""
    scene.stage.play((ev.RollingRestart(timeout=0.5),))
    ((do, rank, problem),) = scene.done
    assert (do, rank) == ("kill", 0)
    assert "left alone" in problem


def test_cont_is_no_disturbance_of_its_own(scene: Scene) -> None:
    scene.stage.play((ev.Stop(rank=1), ev.Cont(rank=1)))
    stop, cont = scene.stage.faults
    assert stop.restored is not None
    assert (cont.restored, cont.wants_restored) == (None, False)


def test_a_stop_is_undone_at_the_end(scene: Scene) -> None:
    scene.stage.play((ev.Stop(rank=1),))
    assert scene.done == [("stop", 1, "not as before within 0.5 s")]
    scene.stage.close()
    assert scene.watch.wait_restored(scene.stage.faults[0].began, 10.0) is not None


def test_exec_runs_a_command(scene: Scene) -> None:
    scene.stage.play((ev.Exec(command=("true",)), ev.Exec(command=("false",)), ev.Exec(command=("true",))))
    assert scene.done == [("exec", None, ""), ("exec", None, "exec: false ended with 1")]


def test_a_soak_draws_by_its_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        with victim() as process:
            scene = Scene(process, seed)
            # Only worker 1 can be broken.
            scene.cluster.workers = [worker(1, pid=process.pid), worker(2, pid=process.pid)]
            scene.stage.soak(Soak(faults=("stall", "stop"), pause=(0.0, 0.0)), 0.7)
            drawn.append([(do, rank) for do, rank, _ in scene.done])
            scene.close()
    shortest = min(map(len, drawn[:2]))
    assert shortest >= 1
    assert drawn[0][:shortest] == drawn[1][:shortest]


def test_a_soak_ends_with_the_first_fault_that_fails(scene: Scene) -> None:
    scene.cluster.workers = [worker(0, state=LOST), worker(1, state=LOST)]
    scene.stage.soak(Soak(faults=("kill",), pause=(0.0, 0.0)), 60.0)
    assert len(scene.done) == 1
