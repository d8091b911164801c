"""Cells: names that are made of what they say, and what cannot be done of one."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from scaling.cell import Cell, Fault, Host, Load, Skew, check
from scaling.link import Link

LOAD = Load(concurrency=4)
CELL = Cell(model="demo/checkpoint", load=LOAD, workers=2)


def changed(**fields: object) -> Cell:
    return msgspec.structs.replace(CELL, **fields)


def test_a_key_is_the_same_in_another_process() -> None:
    text = msgspec.json.encode(CELL).decode()
    program = "import msgspec, sys; from scaling.cell import Cell; "
    program += "print(msgspec.json.decode(sys.argv[1], type=Cell).key)"
    command = [sys.executable, "-c", program, text]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == CELL.key


def test_each_field_changes_the_key() -> None:
    others = [
        changed(model="other"),
        changed(load=Load(concurrency=5)),
        changed(workers=3),
        changed(skew=Skew(zipf=0.0)),
        changed(link=Link(gbit=1.0)),
        changed(serve={"max-batch": 4}),
        changed(fault=Fault("kill")),
    ]
    assert len({cell.key for cell in (CELL, *others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (changed(load=Load()), "concurrency and rate"),
        (changed(load=Load(concurrency=1, rate=1.0)), "concurrency and rate"),
        (changed(load=Load(concurrency=1, trace_format="azure")), "trace_format: needs a trace"),
        (changed(skew=Skew(how="masked")), "masked: needs zipf"),
        (changed(workers=0, fault=Fault("kill")), "fault: needs workers"),
        (changed(workers=0, replicas=2), "replicas: needs workers"),
        (changed(workers=0, wire_dtype="bfloat16"), "wire_dtype: needs workers"),
        (changed(workers=0, transport="ray"), "transport: needs workers"),
        (changed(replicas=3), "replicas: 3"),
        (changed(where="namespaces", hosts=(Host(),)), "hosts: 1 for 2"),
        (changed(link=Link(gbit=1.0)), "where: namespaces"),
        (changed(fault=Fault("kill", worker=2)), "worker 2 of 2"),
        (changed(fault=Fault("cut")), "cut needs"),
    ],
)
def test_what_cannot_be_is_said(cell: Cell, said: str) -> None:
    assert any(said in sentence for sentence in check(cell))


def test_a_trace_is_in_the_experiment_s_folder() -> None:
    assert Load(concurrency=1, trace="t.csv").below(Path("a")).trace == "a/t.csv"
    assert Load(concurrency=1, trace="/t.csv").below(Path("a")).trace == "/t.csv"
    assert Load(concurrency=1).below(Path("a")) == Load(concurrency=1)


def test_what_can_be_is_not_refused() -> None:
    assert check(CELL) == []
    assert check(changed(where="namespaces", link=Link(gbit=1.0), hosts=(Host(0.5), Host(1.0)))) == []
