"""Hostile tokenizers: what each takes at most, and that an honest one in a process gives the same tokens."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.requests.responses import off_loop
from coordinator.api.shared import tokenization
from coordinator.api.shared.errors import ApiError
from coordinator.api.text import confined_tokenizer
from coordinator.api.text.confined_tokenizer import ConfinedEncoder
from coordinator.api.text.tokenizer_main import FAILED, Encoder
from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import BusyError, TokenizerError
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.hostile_tokenizers import GOLDEN, HOSTILE, TEXT, with_normalizer, with_pattern
from tests.moe_model.text.libraries import library_of

# All of them one after the other, in a process whose memory can be told.
PROGRAM = """
import json, re, resource, time
from pathlib import Path
from coordinator.api.text import confined_tokenizer
from coordinator.api.text.confined_tokenizer import ConfinedEncoder
from moe_model.errors import TokenizerError
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api.hostile_tokenizers import HOSTILE, TEXT

# The clock's limits are for a machine that does nothing else.
confined_tokenizer.ENCODE_SECONDS = 60.0

def seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

def clocked(act):
    started, before, said = time.monotonic(), seconds(), None
    try:
        act()
    except TokenizerError as error:
        said = str(error)
    return {"said": said, "clock": time.monotonic() - started, "cpu": seconds() - before}

def load(data):
    found.append(Tokenizer.from_bytes(data, vocab_size=320, confine=ConfinedEncoder))

for name, hostile in HOSTILE.items():
    found = []
    told = {"name": name, "load": clocked(lambda: load(hostile.data))}
    if found:
        told["encode"] = clocked(lambda: found[0].encode(TEXT))
        told["ended"] = clocked(found[0].close)
    status = Path("/proc/self/status").read_text()
    told["mib"] = int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) >> 10
    told["child_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps(told))
"""

ROOT = Path(__file__).parents[4]
BYTES = (GOLDEN / "tokenizer.json").read_bytes()
# As GPT-2's, and not known: a class says the same in another order.
CUSTOM = r"'s|'t| ?[\p{L}]+| ?[\p{N}]+| ?[^\p{L}\s\p{N}]+|\s+(?!\S)|\s+"
MIB = 256


def test_none_of_them_takes_much_time_or_memory() -> None:
    """Each is refused, or its texts are, or it does no harm. Seconds are those of a processor: the clock's
    depend on what else the machine does."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    found: dict[str, Any] = {told["name"]: told for told in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == HOSTILE.keys()
    for name, hostile in HOSTILE.items():
        told = found[name]
        for phase, expected in (("load", hostile.refused), ("encode", hostile.fails)):
            if phase in told:
                said = told[phase]["said"]
                if said is not None or (expected is not None and hostile.is_certain):
                    assert re.search(expected or "nothing", said or ""), (name, phase, said)
        # What the child took is known when it has ended.
        assert sum(told[phase]["cpu"] for phase in ("load", "encode", "ended") if phase in told) < 4, told
        assert max(told["mib"], told["child_mib"]) < MIB, told


def load(data: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(data, vocab_size=320, confine=ConfinedEncoder)


@pytest.mark.parametrize(
    "data",
    [
        with_pattern(CUSTOM),
        with_normalizer({"type": "NFC"}, {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}),
    ],
)
def test_in_a_process_it_has_the_same_tokens(data: bytes) -> None:
    here, there = Tokenizer.from_bytes(data), load(data)
    assert there.waits
    assert not here.waits
    try:
        for text in ("", "Hello, world! 12", "naïve 東京 🙂\n<eos>x", "a" * 100_000):
            assert there.encode(text, add_eos=True) == here.encode(text, add_eos=True)
        assert there.decode(there.encode("Hello")) == "Hello"
        assert there.vocab_size == here.vocab_size == 320
        # Its text may lose bytes on the way, whatever is left in this process.
        assert there.least_tokens(1 << 20) == 0
        with pytest.raises(TokenizerError, match="surrogate"):
            there.encode("a\udc80b")
    finally:
        there.close()


def test_what_is_known_to_be_quick_stays_here() -> None:
    assert not load(BYTES).waits
    assert load(BYTES).least_tokens(1 << 20) > 0


def test_a_text_never_becomes_the_tokenizer() -> None:
    """Where the file could not be built, it is said each time, also of a text that could."""
    encoder = Encoder()
    refusal = encoder(b"no tokenizer")
    assert refusal[:1] == FAILED
    assert encoder(BYTES) == refusal
    assert encoder(b"a text") == refusal


def test_after_a_text_that_was_too_much_the_next_is_encoded() -> None:
    tokenizer = load(HOSTILE["a letter as 100 kB"].data)
    try:
        with pytest.raises(TokenizerError, match="normalizer: 'Replace': "):
            tokenizer.encode(TEXT)
        assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
        tokenizer.close()
        assert tokenizer.decode(tokenizer.encode("once more")) == "once more"
    finally:
        tokenizer.close()


class Held:
    """A TextEncoder that answers when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def encode(self, text: str) -> list[int]:
        self.let_go.wait()
        return [7]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("message", [pb.TokenizeRequest(text="a"), pb.DetokenizeRequest(token_ids=[7])])
async def test_others_are_served_while_a_text_is_encoded(message: Any) -> None:
    """The loop goes on: it is the loop that lets the encoder go."""
    held = Held()
    model = served_model(tokenizer=Tokenizer.from_bytes(BYTES, confine=lambda core, step: held))
    assert not model.tokenizer_waits
    model = served_model(
        tokenizer=Tokenizer.from_bytes(with_pattern(CUSTOM), confine=lambda core, step: held)
    )
    is_text = isinstance(message, pb.TokenizeRequest)
    answer = tokenization.tokenize if is_text else tokenization.detokenize
    asyncio.get_running_loop().call_soon(held.let_go.set)
    await off_loop(answer, message, model)


def test_a_text_that_is_too_much_is_refused_by_the_tokenizers_name() -> None:
    tokenizer = load(HOSTILE["a letter as 100 kB"].data)
    try:
        with pytest.raises(ApiError, match=r"tokenizer\.json: normalizer: 'Replace': "):
            tokenization.tokenize(pb.TokenizeRequest(text=TEXT), served_model(tokenizer=tokenizer))
    finally:
        tokenizer.close()


def test_who_waits_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined_tokenizer, "WAIT_SECONDS", 0.01)
    encoder = ConfinedEncoder(BYTES.decode(), "it")
    try:
        with encoder._turn, pytest.raises(BusyError, match="too many texts are being encoded"):
            encoder.encode("a")
        assert encoder.encode("a")
    finally:
        encoder.close()


@pytest.mark.parametrize("kind", ["unigram with bytes", "word piece"])
def test_a_model_that_is_slow_encodes_there_and_decodes_here(kind: str) -> None:
    library = library_of(kind)
    data = library.to_str().encode()
    with closing(Tokenizer.from_bytes(data, adds_bos=False, confine=ConfinedEncoder)) as tokenizer:
        assert tokenizer.waits
        ids = tokenizer.encode("the café 🙂 <tool>")
        assert ids == library.encode("the café 🙂 <tool>", add_special_tokens=False).ids
        assert tokenizer.decode(ids) == library.decode(ids)
