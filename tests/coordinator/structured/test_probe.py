"""The helper process: replaced when it is gone, ended with its owner."""

import gc
import json
import os
import signal
import threading
import time

import pytest

from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.compiler import CompilerLimits, ConstraintCompiler
from coordinator.structured.probe import Probe
from moe_model.errors import BusyError
from tests.coordinator.confined.children import children
from tests.coordinator.structured.walks import EOS, TINY, compiled, load_tokenizer

GOOD = json.dumps({"grammars": [{"lark_grammar": 'start: "a"\n%llguidance {"no_forcing": true}'}]})
BAD = json.dumps({"grammars": [{"lark_grammar": "start: b"}]})
TOKENS = [bytes([byte]) for byte in range(256)]


def test_it_starts_when_needed_and_ends_when_closed() -> None:
    before = children()
    probe = Probe(TOKENS)
    assert children() <= before
    probe.check(GOOD)
    with pytest.raises(ConstraintError, match="unknown name"):
        probe.check(BAD)
    assert len(children() - before) == 1
    probe.close()
    probe.close()
    assert children() <= before


def test_it_ends_with_its_owner() -> None:
    before = children()
    probe = Probe(TOKENS)
    probe.check(GOOD)
    del probe
    gc.collect()
    assert children() <= before


def test_a_killed_process_is_replaced() -> None:
    before = children()
    probe = Probe(TOKENS)
    probe.check(GOOD)
    (pid,) = children() - before
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    probe.check(GOOD)
    assert children() - before != {pid}
    probe.close()


def test_what_was_tried_is_known_and_the_oldest_forgotten() -> None:
    before = children()
    compiler = ConstraintCompiler(load_tokenizer(TINY), 320, [EOS], CompilerLimits(cache_entries=2))
    compiled(compiler, "regex", "a")
    compiled(compiler, "regex", "b")
    compiled(compiler, "regex", "a")
    compiled(compiler, "choice", ["a"])
    compiler.close()
    assert compiled(compiler, "regex", "a") is not compiled(compiler, "regex", "a")
    assert compiled(compiler, "choice", ["a"])
    assert children() <= before
    assert compiled(compiler, "regex", "b")
    assert children() != before
    compiler.close()


def compile_until_refused(compiler: ConstraintCompiler) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        compiled(compiler, "regex", f"new {time.monotonic_ns()}")


def test_waiting_for_a_turn_is_bounded() -> None:
    limits = CompilerLimits(compile_seconds=2, wait_seconds=0.05)
    compiler = ConstraintCompiler(load_tokenizer(TINY), 320, [EOS], limits)
    compiled(compiler, "regex", "known")
    patterns = [{"properties": {"p": {"type": "string", "pattern": f"a{i}.*b{i}"}}} for i in range(200)]
    refused: list[str] = []

    def hog() -> None:
        with pytest.raises(ConstraintError) as caught:
            compiled(compiler, "json_schema", json.dumps({"allOf": patterns}))
        refused.append(str(caught.value))

    thread = threading.Thread(target=hog)
    thread.start()
    with pytest.raises(BusyError, match="too many"):
        compile_until_refused(compiler)
    assert compiled(compiler, "regex", "known")
    thread.join()
    assert refused == ["takes more than 2 s to compile"]
    compiler.close()
