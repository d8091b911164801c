"""Layers that a step without the interpreter sends to workers itself, by the capsule that a pool gives it."""

import ctypes
import time

import pytest
import torch
from torch import Tensor

from expert_workers.dispatch.native_way import HAS_NATIVE, NativeDispatch
from expert_workers.dispatch.pool import ExpertPool
from tests.expert_workers.dispatch.test_native_way import (
    CONFIG,
    EXPECTED,
    ROUTING,
    TWICE,
    TWO,
    X_TD,
    Gate,
    is_native,
    workers,
)
from tests.expert_workers.fakes import make_worker
from tests.expert_workers.stream_fakes import stream_pool, streams

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")


class _Rows(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.c_long),
        ("num_tokens", ctypes.c_long),
        ("width", ctypes.c_long),
        ("num_places", ctypes.c_long),
        ("x_TD", ctypes.c_void_p),
        ("is_bf16", ctypes.c_int),
        ("weights_TK", ctypes.c_void_p),
        ("ids_TK", ctypes.c_void_p),
    )


class _Experts(ctypes.Structure):
    _fields_ = (
        ("self", ctypes.c_void_p),
        ("begin", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Rows))),
        ("finish", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    )


def experts_in_c(pool: ExpertPool) -> _Experts:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _Experts.from_address(pointer(pool.in_c, b"expertmesh.layer_experts"))


def rows_in_c(x_TD: Tensor) -> _Rows:
    addresses = x_TD.data_ptr(), 0, ROUTING.weights_TK.data_ptr(), ROUTING.expert_ids_TK.data_ptr()
    return _Rows(1, *x_TD.shape, ROUTING.expert_ids_TK.shape[1], *addresses)


def test_a_step_without_the_interpreter_reaches_workers() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        experts, rows = experts_in_c(pool), rows_in_c(X_TD)
        assert experts.begin(experts.self, rows) != 0, "routes have not been taken up"
        assert is_native(pool)
        y_TD = torch.empty_like(X_TD)
        deadline = time.monotonic() + 30
        while experts.begin(experts.self, rows) != 0:
            assert time.monotonic() < deadline
            assert is_native(pool)
        assert experts.finish(experts.self, y_TD.data_ptr()) == 0
        assert torch.equal(y_TD, EXPECTED)
        assert experts.finish(experts.self, y_TD.data_ptr()) != 0, "nothing is on its way"
        pool.close()


def test_what_a_step_without_the_interpreter_cannot_finish_the_pool_does() -> None:
    gate = Gate(make_worker(CONFIG, TWICE, 1))
    with streams({0: make_worker(CONFIG, TWICE, 0), 1: gate}) as (links, machine):
        pool = stream_pool(TWICE, links)
        experts, rows = experts_in_c(pool), rows_in_c(X_TD)
        deadline = time.monotonic() + 30
        gate.goes.clear()
        while experts.begin(experts.self, rows) != 0:
            assert time.monotonic() < deadline
            gate.goes.set()
            assert is_native(pool)
            gate.goes.clear()
        gate.goes.set()
        gate.change = lambda reply: reply._replace(tag=reply.tag + 1)
        machine.kill(1)
        y_TD = torch.empty_like(X_TD)
        assert experts.finish(experts.self, y_TD.data_ptr()) != 0
        assert torch.equal(pool.finish(pool.take_over(1, X_TD, ROUTING)), EXPECTED)
        assert sum(pool.stats().workers[1].failures.values()) == 1
        pool.close()


def test_a_step_without_the_interpreter_takes_no_answer_of_one_that_was_never_finished() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        experts, rows, y_TD = experts_in_c(pool), rows_in_c(X_TD), torch.empty_like(X_TD)
        assert is_native(pool)
        # A step that fails between the two leaves it behind.
        assert isinstance(pool.begin(0, X_TD, ROUTING), NativeDispatch)
        if experts.begin(experts.self, rows) == 0:
            assert experts.finish(experts.self, y_TD.data_ptr()) == 0
            assert torch.equal(y_TD, EXPECTED)
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        deadline = time.monotonic() + 30
        while experts.begin(experts.self, rows) != 0:
            assert time.monotonic() < deadline
            assert is_native(pool)
        assert experts.finish(experts.self, y_TD.data_ptr()) == 0
        assert torch.equal(y_TD, EXPECTED)
        pool.close()


def test_c_begins_nothing_while_python_has_something_on_its_way() -> None:
    with streams(workers()) as (links, _):
        pool = stream_pool(TWO, links)
        experts, rows = experts_in_c(pool), rows_in_c(X_TD)
        assert is_native(pool)
        begun = [pool.begin(1, X_TD.T.contiguous().T, ROUTING)]
        assert experts.begin(experts.self, rows) != 0
        # Its frame would be sent into the middle of one that a socket has not taken as a whole.
        begun.append(pool.begin(1, X_TD, ROUTING))
        assert not any(isinstance(each, NativeDispatch) for each in begun)
        for each in begun:
            assert torch.equal(pool.finish(each), EXPECTED)
        assert is_native(pool)
        pool.close()
