"""A program and those that compute experts for it, without the interpreter and with it.

Shapes: T tokens, D d_model, K experts per token.
"""

import ctypes
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.core.batch import Batch, build_batch
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk, Step
from moe_model.kernels.step_program import PagedAttend
from moe_model.layers.experts import ExpertBackend
from moe_model.layers.router import Routing
from moe_model.model import Model, Part
from tests.examples import examples
from tests.models import TINY, build_model, make_cache, make_request, random_weights
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native.native_kernels import NativeKernels

pytestmark = needs_native
CONFIG = replace(TINY, n_layers=4, max_seq_len=64)
BLOCK_SIZE = 4
KERNELS = NativeKernels(num_threads=2)
WEIGHTS = random_weights(CONFIG)


class _Rows(ctypes.Structure):
    """As src/layer_experts.h has it."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("layer", "num_tokens", "width", "num_places")),
        ("x_TD", ctypes.c_void_p),
        ("is_bf16", ctypes.c_int),
        ("weights_TK", ctypes.c_void_p),
        ("ids_TK", ctypes.c_void_p),
    )


_Begin = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Rows))
_Finish = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _LayerExperts(ctypes.Structure):
    _fields_ = (("self", ctypes.c_void_p), ("begin", _Begin), ("finish", _Finish))


def _tensor(address: int, dtype: torch.dtype, rows: int, width: int) -> Tensor:
    values = (ctypes.c_byte * (rows * width * dtype.itemsize)).from_address(address)
    return torch.frombuffer(values, dtype=dtype).view(rows, width)


class Ways:
    """Experts of a model in this process, as if they were far away: C asks for them as it asks a pool. Each
    layer goes as `ways` says: "c", or C cannot "begin", or cannot "finish"."""

    def __init__(self, local: ExpertBackend, ways: list[str]) -> None:
        self._local, self._ways = local, ways
        self.seen: list[str] = []
        self._flight: tuple[int, Tensor, Routing] | None = None
        self._kept = _LayerExperts(None, _Begin(self._begin), _Finish(self._finish))
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self._name = b"expertmesh.layer_experts"
        self.in_c: object = make(ctypes.addressof(self._kept), self._name, None)

    def _begin(self, _self: int, pointer: "ctypes._Pointer[_Rows]") -> int:
        rows = pointer.contents
        if self._ways[rows.layer] == "begin":
            return 1
        assert self._flight is None, "one at a time"
        x_TD = _tensor(rows.x_TD, torch.float32, rows.num_tokens, rows.width)
        sizes = rows.num_tokens, rows.num_places
        weights_TK = _tensor(rows.weights_TK, torch.float32, *sizes)
        ids_TK = _tensor(rows.ids_TK, torch.int64, *sizes)
        self._flight = rows.layer, x_TD, _routing(weights_TK, ids_TK)
        return 0

    def _finish(self, _self: int, address: int) -> int:
        assert self._flight is not None
        layer, x_TD, routing = self._flight
        if self._ways[layer] == "finish":
            return 1
        y_TD = self._local.forward(layer, x_TD, routing)
        _tensor(address, torch.float32, *y_TD.shape).copy_(y_TD)
        self._flight = None
        self.seen.append("c")
        return 0

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        assert self._ways[layer] == "begin"
        self.seen.append("begin")
        return self._local.forward(layer, x_TD.clone(), routing)

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        assert self._flight is not None
        begun, x_of_C_TD, routing_of_C = self._flight
        assert (begun, self._ways[layer]) == (layer, "finish")
        assert torch.equal(x_TD, x_of_C_TD)
        assert torch.equal(routing.expert_ids_TK, routing_of_C.expert_ids_TK)
        self._flight = None
        self.seen.append("finish")
        return self._local.forward(layer, x_TD.clone(), routing)

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self.finish(self.begin(layer, x_TD, routing))

    def finish(self, begun: Tensor) -> Tensor:
        return begun


def _routing(weights_TK: Tensor, ids_TK: Tensor) -> Routing:
    return Routing(weights_TK, ids_TK, torch.empty(len(ids_TK), CONFIG.n_experts))


def batch_of(lengths: list[int]) -> Batch:
    """Prompts of these lengths."""
    chunks, first_block = [], 1
    for number, length in enumerate(lengths):
        sequence = Sequence(
            make_request(f"r{number}", tuple(range(1, length + 1))), CONFIG.max_seq_len, BLOCK_SIZE
        )
        num_blocks = -(-length // BLOCK_SIZE)
        sequence.tables = (BlockTable(range(first_block, first_block + num_blocks)),)
        first_block += num_blocks
        chunks.append(Chunk(sequence, 0, length, completes=True))
    return build_batch(Step(tuple(chunks)), BLOCK_SIZE, torch.device("cpu"))


def part_of(batch: Batch) -> Part:
    cache = make_cache(CONFIG, 40, BLOCK_SIZE, KERNELS)
    return Part(batch.token_ids_T, batch.positions_T, attention_plan(KERNELS)(cache, batch))


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model(CONFIG, WEIGHTS, KERNELS)


@given(
    st.lists(st.sampled_from(["c", "begin", "finish"]), min_size=4, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@settings(max_examples=examples(60), deadline=None)
def test_a_layer_that_c_cannot_do_is_pythons(model: Model, ways: list[str], lengths: list[int]) -> None:
    part = part_of(batch_of(lengths))
    with torch.inference_mode():
        expected_TD = model.forward_parts([part])
        backend = Ways(model._experts, ways)
        far = Model(CONFIG, model._shared, backend, model.program)
        assert torch.equal(far.forward_parts([part]), expected_TD)
    assert backend.seen == ways


def test_a_step_that_ended_half_way_leaves_nothing(model: Model) -> None:
    """What its experts raise is the caller's; the next step has the memory that it needs."""

    class Broken(Ways):
        def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
            raise ConnectionError

    part = part_of(batch_of([5, 2]))
    with torch.inference_mode():
        expected_TD = model.forward_parts([part])
        far = Model(CONFIG, model._shared, Broken(model._experts, ["c", "c", "begin", "c"]), model.program)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                far.forward_parts([part])
            assert torch.equal(model.forward_parts([part]), expected_TD)


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("a token id outside of the vocabulary", {"token_ids_T": torch.tensor([1, CONFIG.vocab_size])}),
        ("a token id outside of the vocabulary", {"token_ids_T": torch.tensor([1, -1])}),
        ("a position outside of the table", {"positions_T": torch.tensor([0, CONFIG.max_seq_len])}),
    ],
)
def test_what_is_outside_is_refused(model: Model, what: str, changed: dict[str, Tensor]) -> None:
    part = replace(part_of(batch_of([2])), **changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=what):
        model.forward_parts([part])


@pytest.mark.parametrize(
    ("what", "name", "value"),
    [
        ("a slot outside of the cache", "slots_T", torch.tensor([1, 41 * BLOCK_SIZE])),
        ("a token of no sequence", "sequences_T", torch.tensor([0, 1], dtype=torch.int32)),
        ("a token that sees more than there is", "lengths_T", torch.tensor([1, 5], dtype=torch.int32)),
        ("a block outside of the cache", "block_table_NB", torch.tensor([[41]], dtype=torch.int32)),
        ("a token that sees more than the longest", "longest", 1),
    ],
)
def test_what_is_outside_of_the_cache_is_refused(model: Model, what: str, name: str, value: object) -> None:
    part = part_of(batch_of([2]))
    assert isinstance(part.attend, PagedAttend)
    [contexts] = part.attend.contexts
    bad = replace(part.attend, contexts=[replace(contexts, **{name: value})])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=what):
        model.forward_parts([replace(part, attend=bad)])


def test_a_cache_of_another_model_is_refused(model: Model) -> None:
    batch = batch_of([2])
    cache = make_cache(replace(CONFIG, n_heads=4, n_kv_heads=4, head_dim=4), 40, BLOCK_SIZE, KERNELS)
    part = Part(batch.token_ids_T, batch.positions_T, attention_plan(KERNELS)(cache, batch))
    with pytest.raises(ValueError, match="a cache of other keys"):
        model.forward_parts([part])
