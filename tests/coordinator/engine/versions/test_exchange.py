"""A changed model is the checkpoint that would have been written so; and a change that fails is none."""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.engine.messages.errors import ExchangeError
from coordinator.engine.messages.request import Request
from coordinator.engine.versions.exchange import ExpertExchange
from moe_model.errors import HaltedError, WorkerStartError
from moe_model.kernels.choice import KernelChoice
from moe_model.layers.dispatch import ExpertKey
from moe_model.sampling.params import SamplingParams
from moe_model.versions.expert_versions import ExpertModule
from tests.coordinator.exchanges import (
    CONFIG,
    Changing,
    at_once,
    module_of,
    rewritten,
    row_file,
    tokens_of,
    torch_router,
)
from tests.models import Collected, collect, drain, make_request, write_checkpoint
from tests.native import KERNELS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("exchange") / "source", CONFIG)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same sizes."""
    return write_checkpoint(tmp_path_factory.mktemp("exchange") / "donor", CONFIG, seed=9)


def requests(name: str) -> list[Request]:
    samplings = [SamplingParams(temperature=0), SamplingParams(1.2, top_k=9, seed=5)]
    return [make_request(f"{name}{n}", (3, 1, 4, 1 + n), 10, s) for n, s in enumerate(samplings)]


def run(changing: Changing, change: Callable[[], object]) -> dict[str, list[int]]:
    """Requests from before a change and from after it."""
    results: dict[str, Collected] = {}
    for request in requests("before"):
        changing.engine.submit(request)
    for _ in range(4):
        collect(changing.engine.step(), results)
    change()
    for request in requests("after"):
        changing.engine.submit(request)
    while changing.engine.has_work:
        collect(changing.engine.step(), results)
    changing.engine.check_integrity()
    return {name: result.token_ids for name, result in results.items()}


def expected(changing: Changing, before: Path, after: Path) -> dict[str, list[int]]:
    config = changing.config
    return tokens_of(before, config, requests("before")) | tokens_of(after, config, requests("after"))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replaced_expert_is_as_in_a_checkpoint_written_with_it(
    kernels: KernelChoice, dtype: torch.dtype, tmp_path: Path
) -> None:
    paths = [write_checkpoint(tmp_path / str(seed), CONFIG, seed, dtype) for seed in (0, 9)]
    changing, file = Changing.open(paths[0], kernels, dtype), module_of(paths[1], 0, 3)
    tokens = run(changing, lambda: changing.exchange.replace(1, 2, file))
    after = rewritten(paths[0], tmp_path / "after", {(1, 2): Path(file)})
    assert tokens == expected(changing, paths[0], after)
    assert tokens["before0"] != tokens_of(after, changing.config, requests("before"))["before0"]


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_added_expert_is_as_in_a_checkpoint_that_has_it(
    kernels: KernelChoice, source: Path, donor: Path, tmp_path: Path
) -> None:
    changing = Changing.open(source, kernels)
    files = [module_of(donor, layer, 0) for layer in range(CONFIG.n_layers)]
    rows = [row_file(tmp_path / f"row{layer}", layer) for layer in range(CONFIG.n_layers)]

    def add() -> None:
        for layer in range(CONFIG.n_layers):
            changed = changing.exchange.add(layer, files[layer], None, rows[layer])
            assert (changed.expert.module.expert, changed.expert.module.version) == (4, 0)

    tokens = run(changing, add)
    added = {(layer, 4): Path(files[layer]) for layer in range(CONFIG.n_layers)}
    all_rows: list[list[int | Path]] = [[0, 1, 2, 3, Path(row)] for row in rows]
    assert tokens == expected(changing, source, rewritten(source, tmp_path / "after", added, all_rows))


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_removed_expert_is_as_in_a_checkpoint_without_it(
    kernels: KernelChoice, source: Path, tmp_path: Path
) -> None:
    changing = Changing.open(source, kernels)
    tokens = run(changing, lambda: [changing.exchange.remove(layer, 1) for layer in range(CONFIG.n_layers)])
    after = rewritten(source, tmp_path / "after", {}, [[0, 2, 3]] * CONFIG.n_layers)
    assert tokens == expected(changing, source, after)
    assert changing.exchange.status().experts == ((0, 2, 3),) * CONFIG.n_layers


def test_versions_slots_and_ids_are_given_once(source: Path, donor: Path, tmp_path: Path) -> None:
    changing = Changing.open(source)
    exchange, row = changing.exchange, row_file(tmp_path / "row", 1)
    modules = [
        exchange.replace(1, 2, module_of(donor, 0, 0)).expert.module,
        exchange.replace(1, 2, module_of(donor, 0, 1)).expert.module,
        exchange.add(1, module_of(donor, 0, 0), None, row).expert.module,
        exchange.remove(1, 4).expert.module,
        exchange.add(1, module_of(donor, 0, 0), None, row).expert.module,
        exchange.replace(0, 2, module_of(donor, 0, 0)).expert.module,
    ]
    assert [(m.slot, m.expert, m.version) for m in modules] == [
        (4, 2, 1),
        (5, 2, 2),
        (6, 4, 0),
        (6, 4, 0),
        (7, 5, 0),
        (4, 2, 1),
    ]
    assert changing.experts.keys == {(0, n) for n in (0, 1, 3, 4)} | {(1, n) for n in (0, 1, 3, 5, 7)}
    assert exchange.status().changes == {"replace": 3, "add": 2, "remove": 1}
    assert [(m.layer, m.expert) for m in exchange.status().exchanged] == [(0, 2), (1, 2), (1, 5)]


def test_the_list_has_what_is_used_and_by_whom(
    source: Path, donor: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changing, file = Changing.open(source), module_of(donor, 1, 1)
    changing.engine.submit(make_request("old", max_tokens=6))
    changed = changing.exchange.replace(1, 2, file, sha256_of(file).upper())
    assert changed.expert.sha256 == sha256_of(file)
    assert not changed.expert.is_retiring
    shown = [(v.module.expert, v.module.version, v.is_retiring) for v in changing.exchange.list()[4:]]
    assert shown == [(0, 0, False), (1, 0, False), (2, 0, True), (2, 1, False), (3, 0, False)]
    sums = [view.sha256 for view in changing.exchange.list()[4:]]
    assert sums[2:4] == [sha256_of(module_of(source, 1, 2)), sha256_of(file)]
    drain(changing.engine)
    changing.engine.idle()
    assert not any(view.is_retiring for view in changing.exchange.list())
    assert [
        r.message.partition(" seconds")[0]
        for r in caplog.records
        if r.name == "coordinator.engine.versions.exchange"
    ] == [f"experts: replace layer=1 expert=2 version=1 sha256={sha256_of(file)}"]


def sha256_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


Spoil = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
SPOILED: Mapping[str, tuple[Spoil, str]] = {
    "nan": (
        lambda t: {**t, "fc1.bias": t["fc1.bias"] * float("nan")},
        "'fc1.bias' has values that are not finite",
    ),
    "inf": (lambda t: {**t, "fc2.weight": t["fc2.weight"] + float("inf")}, "'fc2.weight' has values"),
    "dtype": (lambda t: {n: each.half() for n, each in t.items()}, "has dtype 'F16', expected 'F32'"),
    "shape": (
        lambda t: {**t, "fc1.bias": t["fc1.bias"][1:]},
        r"'fc1.bias' has shape \[23\], expected \[24\]",
    ),
    "less": (lambda t: {n: each for n, each in t.items() if n != "norm.bias"}, "'norm.bias' is missing"),
    "more": (lambda t: {**t, "gate": torch.ones(1)}, "unknown tensor 'gate'"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_module_that_is_none_changes_nothing(name: str, source: Path, donor: Path, tmp_path: Path) -> None:
    spoil, message = SPOILED[name]
    path = tmp_path / "module.safetensors"
    save_file(spoil(load_file(module_of(donor, 0, 0))), path)
    refused(Changing.open(source), lambda e: e.replace(1, 2, str(path)), "path", message)
    refused(
        Changing.open(source),
        lambda e: e.add(1, str(path), None, row_file(tmp_path / "row", 1)),
        "path",
        message,
    )


def test_who_lists_asks_once_what_is_missing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for each of thousands, with all the others: it holds up the tokens of everybody."""
    changing, asked = Changing.open(source), list[int]()
    lost = [view.module for view in changing.exchange.list()][1::2]

    def missing() -> list[ExpertModule]:
        asked.append(len(lost))
        return lost

    monkeypatch.setattr(changing.experts, "missing_experts", missing)
    listed = changing.exchange.list()
    assert [view.module for view in listed if view.is_missing] == lost
    assert len(asked) == 1


def refused(
    changing: Changing, change: Callable[[ExpertExchange], object], field: str | None, message: str
) -> None:
    before = changing.state()
    with pytest.raises(ExchangeError, match=message) as error:
        change(changing.exchange)
    assert error.value.field == field
    assert "\n" not in str(error.value)
    assert changing.state() == before


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda e, f: e.replace(2, 0, f), "layer", r"2 is not in \[0, 2\)"),
        (lambda e, f: e.replace(0, 4, f), "expert_id", "layer 0 has no expert 4"),
        (lambda e, f: e.replace(0, 1, "module.safetensors"), "path", "is not an absolute path"),
        (lambda e, f: e.replace(0, 1, ""), "path", "is not an absolute path"),
        (lambda e, f: e.replace(0, 1, f + "\0"), "path", "is not an absolute path"),
        (lambda e, f: e.replace(0, 1, f + "-not"), "path", "No such file"),
        (lambda e, f: e.replace(0, 1, f + "x" * 5000), "path", "name too long"),
        (lambda e, f: e.replace(0, 1, "/dev/zero"), "path", "is not a regular file"),
        (lambda e, f: e.replace(0, 1, str(Path(f).parent)), "path", "is not a regular file|Is a directory"),
        (lambda e, f: e.replace(0, 1, f, "12"), "sha256", "is not 64 hexadecimal digits"),
        (lambda e, f: e.replace(0, 1, f, "0" * 64), "path", "SHA-256 is [0-9a-f]{64}, not the one given"),
        (lambda e, f: e.add(9, f, None, f), "layer", r"9 is not in \[0, 2\)"),
        (lambda e, f: e.add(0, f, None, f), "router_path", "'router.weight' is missing"),
        (lambda e, f: e.add(0, f, None, "row"), "router_path", "is not an absolute path"),
        (lambda e, f: e.remove(0, 9), "expert_id", "layer 0 has no expert 9"),
        (lambda e, f: e.remove(7, 0), "layer", r"7 is not in \[0, 2\)"),
    ],
)
def test_what_is_wrong_is_named(
    change: Callable[[ExpertExchange, str], object], field: str, message: str, source: Path, donor: Path
) -> None:
    refused(Changing.open(source), lambda e: change(e, module_of(donor, 0, 0)), field, message)


def test_a_link_is_not_followed(source: Path, donor: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(module_of(donor, 0, 0))
    path = str(tmp_path / "link")
    refused(Changing.open(source), lambda e: e.replace(0, 1, path), "path", "is a symbolic link")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_row_that_is_not_finite_is_refused(value: float, source: Path, donor: Path, tmp_path: Path) -> None:
    save_file({"router.weight": torch.full((CONFIG.d_model,), value)}, tmp_path / "row")
    file, row = module_of(donor, 0, 0), str(tmp_path / "row")
    refused(Changing.open(source), lambda e: e.add(0, file, None, row), "router_path", "not finite")


def test_a_row_beyond_the_dtype_that_runs_is_refused(source: Path, donor: Path, tmp_path: Path) -> None:
    save_file({"router.weight": torch.full((CONFIG.d_model,), 3.4028e38)}, tmp_path / "row")
    changing = Changing.open(source, dtype=torch.bfloat16)
    file, row = module_of(donor, 0, 0), str(tmp_path / "row")
    refused(changing, lambda e: e.add(0, file, None, row), "router_path", "not finite as bfloat16")


def test_as_many_stay_as_a_token_goes_to(source: Path) -> None:
    changing = Changing.open(source)
    changing.exchange.remove(1, 0)
    changing.exchange.remove(1, 3)
    refused(changing, lambda e: e.remove(1, 1), None, "layer 1 would have 1 experts, a token goes to 2")
    changing.exchange.remove(0, 1)


def exchange_over(
    changing: Changing, prepare: Callable[[ExpertModule], None]
) -> tuple[ExpertExchange, list[object]]:
    """One whose backend loads as told, and what was released."""
    released: list[object] = []

    class Backend:
        def prepare(self, module: ExpertModule) -> None:
            prepare(module)

        def release(self, keys: object) -> None:
            released.append(keys)

        def holders(self, key: ExpertKey) -> tuple[int, ...]:
            return ()

        def missing_experts(self) -> tuple[ExpertModule, ...]:
            return ()

    engine = changing.engine
    assert engine.versions is not None
    make_router = torch_router(changing.checkpoint.config)
    return ExpertExchange(
        changing.checkpoint, Backend(), engine.versions, at_once(engine), make_router
    ), released


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerStartError("worker 1: no such file"), "could not be loaded: worker 1: no such file"),
        (MemoryError(), "could not be loaded: not enough memory"),
        (torch.OutOfMemoryError("CUDA"), "could not be loaded: not enough memory"),
        (ZeroDivisionError(), "could not be loaded; the server's log says why"),
    ],
)
def test_a_module_that_cannot_be_loaded_changes_nothing(
    error: Exception, message: str, source: Path, donor: Path
) -> None:
    def fail(module: ExpertModule) -> None:
        raise error

    changing = Changing.open(source)
    changing.exchange, released = exchange_over(changing, fail)
    refused(changing, lambda e: e.replace(1, 2, module_of(donor, 0, 0)), None, message)
    assert released == [[(1, 4)]]


def test_a_file_that_changes_meanwhile_is_refused(source: Path, donor: Path, tmp_path: Path) -> None:
    path = tmp_path / "module"
    path.write_bytes(Path(module_of(donor, 0, 0)).read_bytes())
    changing = Changing.open(source)

    def prepare(module: ExpertModule) -> None:
        path.write_bytes(Path(module_of(donor, 0, 1)).read_bytes())
        changing.experts.prepare(module)

    changing.exchange, _ = exchange_over(changing, prepare)
    refused(changing, lambda e: e.replace(1, 2, str(path)), "path", "has changed")


def test_there_is_one_change_at_a_time(source: Path, donor: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def prepare(module: ExpertModule) -> None:
        begun.set()
        assert go_on.wait(30)
        changing.experts.prepare(module)

    changing = Changing.open(source)
    changing.exchange, _ = exchange_over(changing, prepare)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(changing.exchange.replace, 1, 2, module_of(donor, 0, 0))
        assert begun.wait(30)
        refused(changing, lambda e: e.remove(0, 1), None, "another change of experts is under way")
        go_on.set()
        assert first.result(30).expert.module.version == 1
    changing.exchange.remove(0, 1)


def over_call(changing: Changing, waiting: Future[None]) -> None:
    """An engine that never comes to what it is told."""
    engine = changing.engine
    assert engine.versions is not None
    changing.exchange = ExpertExchange(
        changing.checkpoint,
        changing.experts,
        engine.versions,
        lambda _: waiting,
        torch_router(changing.checkpoint.config),
        switch_timeout=0.01,
    )


def test_an_engine_that_does_not_come_to_it_is_not_waited_for(source: Path, donor: Path) -> None:
    changing, waiting = Changing.open(source), Future[None]()
    over_call(changing, waiting)
    refused(changing, lambda e: e.replace(1, 2, module_of(donor, 0, 0)), None, "no step ended in 0.01 s")
    assert waiting.cancelled(), "it must not be called later"


def test_an_engine_that_is_closed_meanwhile_is_said_to_be(source: Path, donor: Path) -> None:
    changing, waiting = Changing.open(source), Future[None]()
    waiting.cancel()
    over_call(changing, waiting)
    before = changing.state()
    with pytest.raises(HaltedError, match="the server is shutting down"):
        changing.exchange.remove(1, 2)
    assert changing.state() == before


def test_a_load_that_is_halted_says_so_and_leaves_nothing(source: Path, donor: Path) -> None:
    def halted(module: ExpertModule) -> None:
        raise HaltedError("it is being stopped")

    changing = Changing.open(source)
    changing.exchange, released = exchange_over(changing, halted)
    with pytest.raises(HaltedError):
        changing.exchange.replace(1, 2, module_of(donor, 0, 0))
    assert released == [[(1, 4)]]
