"""What a constraint adds to each token, by kind. python -m benchmarks.structured [CHECKPOINT]

The calls are the engine's: fill the mask, advance by a token that it allows, ask whether the output must end.
Tokens are drawn evenly from the mask, which reaches more of a grammar than a model would.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency import percentile
from benchmarks.report import add_out_argument, reporting
from coordinator.engine.messages.request import ConstraintSource
from coordinator.engine.sampling.constraint import Constraint
from coordinator.structured.compiler import ConstraintCompiler
from moe_model.checkpoint.reader import Checkpoint
from moe_model.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"

ITEM = {
    "type": "object",
    "properties": {
        "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "gift": {"type": "boolean"},
    },
    "required": ["sku", "count"],
    "additionalProperties": False,
}
ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
    "required": ["street", "zip"],
    "additionalProperties": False,
}
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0},
        "customer": {"type": "string", "maxLength": 40},
        "state": {"enum": ["new", "paid", "sent", "lost"]},
        "total": {"type": "number", "minimum": 0},
        "address": ADDRESS,
        "items": {"type": "array", "items": ITEM, "minItems": 1, "maxItems": 4},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["id", "customer", "state", "total", "address", "items"],
    "additionalProperties": False,
}
ARITHMETIC = r"""
start: expr
expr: term (("+" | "-") term)*
term: factor (("*" | "/") factor)*
factor: NUMBER | NAME | "(" expr ")"
NUMBER: /[0-9]+(\.[0-9]+)?/
NAME: /[a-z_][a-z0-9_]*/
"""
CASES: dict[str, str | list[str]] = {
    "json_schema": json.dumps(ORDER),
    "json_object": "",
    "regex": r"(\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4}(, [A-Za-z ]{3,30}){1,20}",
    "choice": [f"option number {number} of many" for number in range(256)],
    "grammar": ARITHMETIC,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind: compiling it first and again, beginning a sequence, and each token; of the calls alone."""

    kind: str
    compile_ms: float
    again_ms: float
    matcher_us: float
    token_mean_us: float
    token_p99_us: float
    token_worst_us: float


def walk(constraint: Constraint, end_ids: frozenset[int], num_words: int, seed: int) -> Iterator[float]:
    """Seconds per token of one sequence, until it ends or for 200 tokens."""
    rng, matcher, mask_W = random.Random(seed), constraint.matcher(), np.zeros(num_words, dtype=np.int32)
    for _ in range(200):
        started = time.perf_counter()
        matcher.fill_mask(mask_W)
        filled = time.perf_counter()
        allowed = np.flatnonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little"))
        token_id = int(rng.choice(allowed))
        if token_id in end_ids:
            yield filled - started
            return
        drawn = time.perf_counter()
        matcher.advance(token_id)
        assert matcher.must_end in (False, True)
        yield filled - started + time.perf_counter() - drawn


def source_of(kind: str) -> ConstraintSource:
    value = CASES[kind]
    return ConstraintSource(kind, (value,) if isinstance(value, str) else tuple(value))


def measure(
    compiler: ConstraintCompiler, kind: str, ends: Sequence[int], vocab_size: int, num_tokens: int
) -> Cost:
    started = time.perf_counter()
    constraint = compiler.compile(source_of(kind))
    compiled = time.perf_counter() - started
    started = time.perf_counter()
    compiler.compile(source_of(kind))
    again = time.perf_counter() - started
    begun = []
    for _ in range(100):
        started = time.perf_counter()
        constraint.matcher()
        begun.append(time.perf_counter() - started)
    seconds: list[float] = []
    while len(seconds) < num_tokens:
        seconds += walk(constraint, frozenset(ends), -(-vocab_size // 32), seed=len(seconds))
    ordered = sorted(1e6 * second for second in seconds)
    return Cost(
        kind=kind,
        compile_ms=1e3 * compiled,
        again_ms=1e3 * again,
        matcher_us=1e6 * statistics.median(begun),
        token_mean_us=statistics.mean(ordered),
        token_p99_us=percentile(ordered, 99),
        token_worst_us=ordered[-1],
    )


def measure_all(checkpoint: Checkpoint, num_tokens: int) -> list[Cost]:
    vocab_size, ends = checkpoint.config.vocab_size, checkpoint.generation.eos_token_ids
    tokenizer_json = checkpoint.read_tokenizer()
    assert tokenizer_json is not None, "the checkpoint has no tokenizer"
    compiler = ConstraintCompiler(Tokenizer.from_bytes(tokenizer_json), vocab_size, ends)
    compiler.compile(ConstraintSource("regex", ("warm up: the helper process starts here",)))
    print(f"{'':>12} {'compile, ms':>12} {'again':>7} {'begin':>7} {'mean':>7} {'p99':>7} {'worst':>7}")
    costs = []
    for kind in CASES:
        cost = measure(compiler, kind, ends, vocab_size, num_tokens)
        costs.append(cost)
        print(
            f"{kind:>12} {cost.compile_ms:>12.1f} {cost.again_ms:>7.1f} {cost.matcher_us:>7.0f}"
            f" {cost.token_mean_us:>7.1f} {cost.token_p99_us:>7.1f} {cost.token_worst_us:>7.0f}",
            flush=True,
        )
    compiler.close()
    return costs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what structured output adds to each token.")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO)
    parser.add_argument("--tokens", type=int, default=5000, help="tokens of each kind (default: 5000)")
    add_out_argument(parser)
    args = parser.parse_args(argv)
    checkpoint = Checkpoint.open(args.checkpoint)
    with reporting("structured", args.out, argv) as report:
        costs = measure_all(checkpoint, args.tokens)
        report.finish({"vocab_size": checkpoint.config.vocab_size, "costs": list(map(asdict, costs))})


if __name__ == "__main__":
    main()
