"""Cells of a sweep, predicted."""

from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from scaling.cell import Cell, Fault, Host, Load, Skew
from scaling.link import Link
from scaling.machines import Machine, Machines, Overheads
from scaling.predict.cells import outcome_of, predict, predict_all
from scaling.predict.settings import HEAD, setting_of
from scaling.prediction import Prediction

BASE = Path("demo")
OVERHEADS = Overheads(step_us=300, layer_us=30, row_us=3, token_us=60, call_us=25, worker_us=30, byte_ns=1)
MACHINES = Machines((Machine("m0", 2, 16, 15, 150, overheads=OVERHEADS),))
LOAD = Load(concurrency=4, num_requests=8, prompt_tokens=8, output_tokens=8)


def cell(**fields: object) -> Cell:
    return Cell("checkpoint", LOAD, dtype="float32", **fields)  # type: ignore[arg-type]


def test_one_prediction_for_each_cell() -> None:
    cells = [cell(), cell(workers=2), cell(workers=2, skew=Skew(zipf=1.2))]
    found = predict_all(cells, MACHINES, BASE, num_seeds=2)
    assert [each.cell for each in found] == [each.key for each in cells]
    for each in found:
        assert isinstance(each, Prediction)
        assert 0 < each.tokens_per_s.low <= each.tokens_per_s.value <= each.tokens_per_s.high
        assert set(each.split_ms) == {"dispatch", "combine", "rest"}
    assert found[0].split_ms["dispatch"] == 0 < found[1].split_ms["dispatch"]


def test_slower_links_and_hosts_are_slower() -> None:
    plain = cell(workers=2, where="namespaces")
    far = cell(workers=2, where="namespaces", link=Link(gbit=0.1, delay_ms=2))
    weak = cell(workers=2, where="namespaces", hosts=(Host(cores=0.25), Host(cores=1)))
    rates = [predict(each, MACHINES, BASE, 1).tokens_per_s.value for each in (plain, far, weak)]
    assert rates[1] < rates[0]
    assert rates[2] < rates[0]


def test_hosts_have_quotas_cables_and_threads_of_their_own() -> None:
    made = setting_of(
        cell(
            workers=2,
            where="namespaces",
            link=Link(gbit=1, delay_ms=0.5),
            hosts=(Host(cores=0.5), Host(link=Link(gbit=2))),
        ),
        MACHINES,
        BASE,
    )
    first, second = made.workers
    assert (first.quota, first.threads, second.quota, second.threads) == (0.48, 1, None, 2)
    assert made.cables == {HEAD: Link(gbit=1), "w0": Link(gbit=1, delay_ms=0.5), "w1": Link(gbit=2)}


def test_all_requests_are_answered_under_faults() -> None:
    fault = Fault(kind="kill", at_s=0.01)
    found = outcome_of(cell(workers=2, replicas=2, fault=fault), MACHINES, BASE)
    assert (found.num_failed, found.num_tokens) == (0, 64)


def test_options_of_the_server_count() -> None:
    one = cell(workers=2, serve={"max-batch": 1})
    assert setting_of(one, MACHINES, BASE).engine.max_num_seqs == 1
    assert (
        predict(one, MACHINES, BASE, 1).tokens_per_s.value
        < predict(cell(workers=2), MACHINES, BASE, 1).tokens_per_s.value
    )
    with pytest.raises(ConfigError, match="--no-such-thing"):
        predict(cell(serve={"no-such-thing": 1}), MACHINES, BASE)


def test_an_open_loop_waits_for_its_requests() -> None:
    slow = Cell(
        "checkpoint", Load(rate=20, num_requests=20, prompt_tokens=8, output_tokens=4), dtype="float32"
    )
    found = outcome_of(slow, MACHINES, BASE)
    assert 0.3 < found.seconds < 3
