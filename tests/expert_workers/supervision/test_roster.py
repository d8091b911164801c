"""The roster, and this process as the last resort, which is no worker and holds experts all the same."""

import pytest

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.supervision.crew import Crew, crew_of
from expert_workers.supervision.last_resort import LastResort
from expert_workers.supervision.restart_policy import RestartOptions
from expert_workers.supervision.roster import Roster
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.versions.expert_versions import Catalog
from tests.expert_workers.fakes import make_config, make_worker, placed

CONFIG = make_config()
WORKER = make_worker(CONFIG, placed(2, 5, 1), 0)
RESTARTS = RestartOptions()
A, B, C = (0, 0), (0, 1), (1, 0)
KNOWN: Keys = frozenset([A, B, C])
MODULES = {module.key: module for module in Catalog.of_checkpoint(CONFIG).modules}


def load(_: object) -> Address:
    return Address(HERE, 1, "")


def holding(here: LastResort, held: Keys) -> SupervisedWorker:
    worker, job = here.begin(MODULES[key] for key in held)
    here.loaded(held, job())
    return worker


def resize(roster: Roster, num_workers: int) -> int:
    """Returns how many there were to be before."""
    num_before = roster.num_staying
    roster.follow(crew_of(roster.workers, None, num_workers, 0))
    return num_before


def test_ranks_are_those_that_there_shall_be_and_those_that_leave() -> None:
    roster = Roster(RESTARTS, LastResort(None, RESTARTS))
    assert resize(roster, 3) == 0
    assert resize(roster, 1) == 3
    assert [worker.is_leaving for worker in roster.workers] == [False, True, True]
    assert resize(roster, 2) == 1
    leaving = roster.get(2)
    roster.ended(2)
    assert [worker.rank for worker in roster.workers] == [0, 1]
    assert resize(roster, 3) == 2
    assert roster.get(2) is not leaving, "its process is another one"


def test_a_worker_that_is_wanted_again_while_it_ends_is_begun_anew() -> None:
    roster = Roster(RESTARTS, LastResort(None, RESTARTS))
    resize(roster, 2)
    resize(roster, 1)
    ending = roster.get(1)
    resize(roster, 2)
    roster.ended(1)
    again = roster.get(1)
    assert again is not None
    assert again is not ending
    assert not again.is_ready


def test_new_workers_get_the_lowest_free_ranks_and_keep_their_machines() -> None:
    roster = Roster(RESTARTS, LastResort(None, RESTARTS))
    roster.join(1, "a")
    assert roster.follow(Crew(frozenset({1}), ("b", "c")))
    assert not roster.follow(Crew(frozenset({0, 1, 2})))
    assert [worker.bound_to for worker in roster.workers] == ["b", "a", "c"]
    roster.ended(2)
    assert [worker.bound_to for worker in roster.workers] == ["b", "a", "c"]
    assert roster.follow(Crew(frozenset({0, 1})))
    roster.ended(2)
    assert [worker.rank for worker in roster.workers] == [0, 1]


def test_this_process_is_no_worker_and_holds_experts() -> None:
    here = LastResort(load, RESTARTS)
    roster = Roster(RESTARTS, here)
    resize(roster, 1)
    assert [holder.rank for holder in roster.holders] == [0]
    worker = holding(here, frozenset([A]))
    assert [each.rank for each in roster.workers] == [0]
    assert [holder.rank for holder in roster.holders] == [0, HERE]
    assert roster.get(HERE) is worker
    assert resize(roster, 1) == 1
    assert not worker.is_leaving


def test_a_job_counts_unless_another_was_begun_or_the_worker_is_gone() -> None:
    roster = Roster(RESTARTS, LastResort(None, RESTARTS))
    resize(roster, 1)
    worker = roster.get(0)
    assert worker is not None
    first = roster.begin(worker)
    second = roster.begin(worker)
    assert not first(), "the worker was fenced meanwhile, which is the second job"
    assert worker.is_busy
    assert second()
    assert not worker.is_busy
    third = roster.begin(worker)
    roster.ended(0)
    assert not third()


def test_what_is_missing_is_loaded_with_what_is_there_and_only_once() -> None:
    here = LastResort(load, RESTARTS)
    assert here.due(frozenset([A]), KNOWN, 1.0) == {A}
    worker, job = here.begin([MODULES[A]])
    worker.is_busy = True
    assert here.due(frozenset([B]), KNOWN, 1.0) == frozenset(), "a load is under way"
    worker.is_busy = False
    here.loaded(frozenset([A]), job())
    assert here.due(frozenset([A]), KNOWN, 1.0) == frozenset(), "it is there"
    assert here.due(frozenset([A, B]), KNOWN, 1.0) == {A, B}
    assert here.due(frozenset([B]), frozenset([B]), 1.0) == {B}, "what is wanted no longer is let go"


def test_experts_here_go_all_together_or_stay() -> None:
    here = LastResort(load, RESTARTS)
    holding(here, frozenset([A, B]))
    here.drop(frozenset([A]))
    assert here.worker is not None
    here.drop(frozenset([A, B, C]))
    assert here.worker is None


def test_a_load_that_failed_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expert_workers.supervision.last_resort.time.monotonic", lambda: 100.0)
    here = LastResort(load, RESTARTS)
    here.begin([MODULES[A]])
    here.failed()
    assert here.worker is None
    assert here.due(frozenset([A]), KNOWN, 100.0) == {A}, "the first time at once"
    here.begin([MODULES[A]])
    here.failed()
    assert here.due(frozenset([A]), KNOWN, 100.9) == frozenset()
    assert here.due(frozenset([A]), KNOWN, 101.0) == {A}


def test_nothing_is_loaded_here_where_that_is_not_wanted() -> None:
    assert LastResort(None, RESTARTS).due(frozenset([A]), KNOWN, 0.0) == frozenset()
