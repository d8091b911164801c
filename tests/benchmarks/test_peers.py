"""What the comparison with other systems makes of its measurements, and how it talks to a peer."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.arguments import PEER_MODELS
from benchmarks.peers import table
from benchmarks.peers.agreement import Agreement, check_alike, compare
from benchmarks.peers.install import reason
from benchmarks.peers.jobs import Load, Probe, Timing, prompt_ids
from benchmarks.peers.models import MODELS, write_model
from benchmarks.peers.ours import OurModel, fitted
from benchmarks.peers.process import PeerError, PeersEnvironment, peer
from benchmarks.peers.rounds import Measured, measure_rounds
from benchmarks.peers.serve import TRIALS, answer_to
from benchmarks.peers.systems import Opened, open_peers
from benchmarks.peers.verdict import Bar, rate, ratios, verdicts
from coordinator.config.engine import EngineConfig
from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.families import family_of

DECODE = Load(batch=2, prompt_tokens=8, new_tokens=5)
LONG = Load(batch=1, prompt_tokens=64, new_tokens=1)


def test_the_models_have_about_as_many_parameters() -> None:
    """The Mixtral as many as ModularForge's default model, beside which its speed is set."""
    assert tuple(MODELS) == PEER_MODELS
    configs = {name: read_config(settings, Path(name))[1] for name, settings in MODELS.items()}
    params = {name: family_of(config).num_params(config) for name, config in configs.items()}
    ours, config = ModelConfig(), configs["mixtral"]
    active = family_of(config).num_active_params_per_token(config)
    assert params["mixtral"] == pytest.approx(family_of(ours).num_params(ours), rel=0.01)
    assert active == pytest.approx(family_of(ours).num_active_params_per_token(ours), rel=0.01)
    assert params["qwen3_moe"] == pytest.approx(params["mixtral"], rel=0.1)
    assert configs["qwen3_moe"].n_heads * configs["qwen3_moe"].head_dim != config.d_model


def test_a_model_is_written_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(MODELS, "mixtral", {**MODELS["mixtral"], **small, "vocab_size": 64})
    checkpoint = write_model("mixtral", tmp_path / "mixtral")
    assert (checkpoint.format, checkpoint.dtype) == ("hugging_face", torch.bfloat16)
    found = OurModel(checkpoint, EngineConfig(dtype="bfloat16", num_threads=1)).probe([5, 6, 7], 4)
    exact = OurModel(checkpoint, EngineConfig(dtype="float32", num_threads=1)).probe([5, 6, 7], 4)
    assert (len(found.logits_V), len(found.token_ids)) == (64, 4)
    # Nothing is rounded where products of bfloat16 weights take float32 rows, as with AVX2.
    assert compare([found], [exact]).logits_error < 0.05


@pytest.mark.parametrize(("ours", "allowed"), [(0.019, True), (0.021, False), (float("nan"), False)])
def test_ours_is_as_near_as_transformers_in_its_dtype(ours: float, allowed: bool) -> None:
    """Twice as far off as transformers is at most; in float32, where it is its own reference, a little."""
    for scale, theirs in ((1.0, 0.01), (1 / 200, 0.0)):
        with nullcontext() if allowed else pytest.raises(PeerError, match="ours is"):
            check_alike(Agreement(ours * scale, 0, 0), Agreement(theirs, 0, 0))


def test_prompts_are_plain_tokens_and_differ() -> None:
    prompts = [prompt_ids(index, 40, 64) for index in range(3)]
    assert all(len(prompt) == 40 and min(prompt) >= 4 and max(prompt) < 64 for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == 3


def test_every_prompt_of_a_load_fits_one_step() -> None:
    config = fitted(EngineConfig(), [DECODE, LONG])
    assert (config.max_step_tokens, config.max_num_seqs, config.prefix_caching) == (65, 3, False)


def test_a_rate_is_of_the_median_round() -> None:
    timings = [Timing(1.0, 4.0), Timing(9.0, 1.0), Timing(2.0, 2.0)]
    assert rate(timings, DECODE, "prefill") == 16 / 2
    assert rate(timings, DECODE, "decode") == 8 / 2
    assert rate(timings, LONG, "decode") is None


def test_ratios_are_of_the_same_round() -> None:
    ours, theirs = [Timing(1.0, 1.0), Timing(3.0, 6.0)], [Timing(2.0, 3.0), Timing(6.0, 6.0)]
    assert ratios(ours, theirs, "prefill") == [2.0, 2.0]
    assert ratios(ours, theirs, "decode") == [3.0, 1.0]


def test_a_system_that_fails_in_a_later_round_is_compared_until_then() -> None:
    """llama.cpp's Q8_0 ends itself on some processors, with a load in the middle."""
    calls = iter(range(10))

    def fails(load: Load) -> tuple[Timing, str]:
        if next(calls) == 3:
            raise PeerError("llama.cpp-q8_0 has ended by SIGABRT: ggml: tile")
        return Timing(2.0, 3.0), "a way"

    systems = {"ours": lambda load: (Timing(1.0, 1.0), "a way"), "llama.cpp-q8_0": fails}
    measured = measure_rounds(systems, [DECODE, LONG], 3)
    assert [len(measured.timings["llama.cpp-q8_0", load]) for load in (DECODE, LONG)] == [2, 1]
    (found,) = verdicts(measured.timings, [Bar("decode", 2, "ours", "llama.cpp", 1.5, 2.5)])
    assert (found.median, found.greatest) == (3.0, 3.0)
    assert any("llama.cpp-q8_0" in line and " 3.00 " in line for line in table.lines(measured))
    assert list(table.failure_lines(measured)) == [
        "llama.cpp-q8_0  failed: llama.cpp-q8_0 has ended by SIGABRT: ggml: tile"
    ]


@pytest.mark.parametrize(("theirs", "word"), [(1.0, "MISSED"), (1.5, "met"), (2.4, "met"), (2.5, "beyond")])
def test_a_bar(theirs: float, word: str) -> None:
    bar = Bar("decode", 2, "ours", "llama.cpp", 1.5, 2.5)
    timings = {
        ("ours", DECODE): [Timing(1.0, 1.0)],
        ("llama.cpp-bf16", DECODE): [Timing(9.0, theirs)],
        ("llama.cpp-bf16", LONG): [Timing(9.0, 0.0)],
        ("transformers", DECODE): [Timing(9.0, 9.0)],
    }
    (found,) = verdicts(timings, [bar])
    assert (found.theirs, found.median, found.least, found.greatest) == ("llama.cpp-bf16", *[theirs] * 3)
    assert str(found).endswith(f"beyond 2.5: {word}")


def test_the_long_prompt_has_its_own_bar_and_what_was_not_measured_has_none() -> None:
    timings = {("ours", LONG): [Timing(1.0, 0.0)], ("llama.cpp-bf16", LONG): [Timing(2.0, 0.0)]}
    (found,) = verdicts(timings)
    assert (found.bar.phase, found.median) == ("prefill", 2.0)


def test_another_system_begins_each_round() -> None:
    turns: list[tuple[str, int]] = []

    def measure(name: str, load: Load) -> tuple[Timing, str]:
        turns.append((name, load.batch))
        return Timing(1.0, 1.0), "a way"

    systems = {name: lambda load, name=name: measure(name, load) for name in ("ours", "origin")}
    measured = measure_rounds(systems, [DECODE, LONG], 2)
    assert turns == [
        *[("ours", 2), ("ours", 1), ("origin", 1)],
        *[("ours", 2), ("origin", 1), ("ours", 1)],
    ]
    assert len(measured.timings["ours", LONG]) == 2


def test_the_table() -> None:
    timings = {
        ("ours", LONG): [Timing(1.0, 0.0)],
        ("ours", DECODE): [Timing(1.0, 1.0)],
        ("peer", DECODE): [Timing(2.0, 4.0)],
    }
    measured = Measured(timings, dict.fromkeys(timings, "way"))
    assert [line.split() for line in table.lines(measured)][1:] == [
        ["8", "5", "2", "ours", "16", "8", "way"],
        ["8", "5", "2", "peer", "8", "2", "2.00", "4.00", "way"],
        [],
        ["64", "1", "1", "ours", "64", "way"],
    ]
    assert [row["decode_tokens_per_second"] for row in table.rows(measured)] == [None, 8.0, 2.0]


def test_agreement_ends_at_the_first_other_token() -> None:
    reference = [Probe([3.0, 4.0], [1, 2, 3]), Probe([0.0, 1.0], [4, 5, 6])]
    found = [Probe([3.0, 4.5], [1, 9, 3]), Probe([0.0, 1.0], [4, 5, 6])]
    agreement = compare(found, reference)
    assert (agreement.logits_error, agreement.num_equal, agreement.num_tokens) == (0.05, 4, 6)


class FakePeer:
    """Is fast in one way only."""

    version = "0"

    def __init__(self) -> None:
        self.runs: list[str] = []

    def ways(self, load: Load) -> Sequence[str]:
        return "slow", "fast"

    def run(self, load: Load, way: str) -> Timing:
        self.runs.append(way)
        return Timing(1.0, 2.0 if way == "slow" else 1.0)

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe:
        return Probe([0.5], list(prompt))


def test_a_peer_measures_a_load_in_its_fastest_way() -> None:
    fake = FakePeer()
    chosen: dict[Load, str] = {}
    load = {"batch": 1, "prompt_tokens": 2, "new_tokens": 3}
    assert answer_to(fake, {"kind": "choose", "load": load}, chosen) == {"way": "fast"}
    assert len(fake.runs) == 2 * (TRIALS + 1)
    fake.runs.clear()
    answer: Mapping[str, object] = answer_to(fake, {"kind": "measure", "load": load}, chosen)
    assert answer == {"way": "fast", "prefill_seconds": 1.0, "decode_seconds": 1.0}
    assert fake.runs == ["fast", "fast"]
    probe = {"kind": "probe", "prompt": [7], "new_tokens": 1}
    assert answer_to(fake, probe, chosen) == {"logits_V": [0.5], "token_ids": [7]}


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    environment = PeersEnvironment(Path(sys.executable), 1, tmp_path)
    with (
        pytest.raises(PeerError, match=r"gone has ended: .*No module named benchmarks.peers.nothing"),
        peer(environment, "gone", "nothing", {}),
    ):
        pass


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (["Collecting x", "ERROR: No matching distribution (from versions: none)"], "registry"),
        (["x", "  CMake Error at CMakeLists.txt:1", "error: subprocess failed"], "CMake Error at CMake"),
        (["nothing to go by"], "pip failed"),
    ],
)
def test_why_an_installation_failed(log: list[str], message: str) -> None:
    found = reason(log, Path("install.log"))
    assert message in found
    assert found.endswith("(see install.log)")
    assert "\n" not in found


# Peers of a few lines, in the place of `python -m benchmarks.peers.MODULE`: what each does when it is asked.
FAKES = {
    "well": 'print(\'{"way": "w", "prefill_seconds": 1.0, "decode_seconds": 1.0}\', flush=True)',
    "killed": "os.kill(os.getpid(), signal.SIGILL)",
    "gone": "sys.exit('out of luck')",
    "hung": "signal.pause()",
    "babbling": "print('no JSON', flush=True)",
}
FAKE = 'import os, signal, sys\nprint(\'{"version": "1"}\', flush=True)\nfor line in sys.stdin:\n    '
FAILS = {
    "killed": "killed has ended by SIGILL: its log is empty",
    "gone": "gone has ended: out of luck",
    "hung": "hung: no answer in 1 s",
    "babbling": "babbling: b'no JSON\\n' is no answer",
    "unstarted": "unstarted has ended by SIGILL: its log is empty",
    "unimportable": "unimportable has ended: ModuleNotFoundError: No module named 'there_is_none'",
}


class FakeEnvironment(PeersEnvironment):
    """Runs the lines that stand in the place of a module."""

    def command(self, module: str, options: Mapping[str, object]) -> list[str]:
        return [str(self.python), "-c", module]


def test_a_peer_that_fails_is_a_row_and_ends_no_other(tmp_path: Path) -> None:
    """One crashes at its start, one when it is asked, one hangs, ...: the other is measured to the end."""
    environment = FakeEnvironment(Path(sys.executable), 1, tmp_path, answer_timeout=60)
    impatient = FakeEnvironment(Path(sys.executable), 1, tmp_path, answer_timeout=1)
    code = {name: FAKE + asked for name, asked in FAKES.items()}
    code["unstarted"] = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    code["unimportable"] = "import there_is_none"
    options: dict[str, object] = {}
    wanted = [(name, lines, options) for name, lines in code.items()]
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        peers = open_peers(environment, wanted, stack, failures)
        assert set(failures) == {"unstarted", "unimportable"}
        peers["hung"]._timeout = impatient.answer_timeout
        systems = {name: process.measure for name, process in peers.items()}
        measured = measure_rounds(systems, [DECODE, LONG], 2, failures)
    assert measured.failures == FAILS
    assert {name for name, _ in measured.timings} == {"well"}
    assert [len(timings) for timings in measured.timings.values()] == [2, 2]
    lines = list(table.failure_lines(measured))
    assert "killed          failed: killed has ended by SIGILL: its log is empty" in lines
    assert len(lines) == len(FAILS)


def test_a_peer_that_has_failed_is_asked_nothing_more(tmp_path: Path) -> None:
    """Why it failed stays as it was first told, also where it ends because of that."""
    environment = FakeEnvironment(Path(sys.executable), 1, tmp_path, answer_timeout=60)
    failures = {"gone": "gone computes another model"}
    with ExitStack() as stack:
        wanted: list[tuple[str, str, dict[str, object]]] = [
            (name, FAKE + FAKES[name], {}) for name in ("well", "gone")
        ]
        peers = open_peers(environment, wanted, stack, failures)
        Opened({}, peers, {}, failures).choose_ways([DECODE])
    assert failures == {"gone": "gone computes another model"}
