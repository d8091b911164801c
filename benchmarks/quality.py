"""What rounding costs: logits of each way to compute against float32. python -m benchmarks.quality

Over text in windows of the model's context: the Kullback-Leibler divergence from the
float32 reference (in nats), how often the most likely token is the same, and the perplexity of the text.
Shapes: W windows, S tokens of a window, V vocabulary.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import Report, add_out_argument, reporting
from moe_model.assembled import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import HAS_NATIVE, KernelChoice, choose_kernels
from moe_model.loading import load_local_experts, load_model
from moe_model.names import WeightForm, stored_form
from moe_model.text.tokenizer import Tokenizer

DEFAULT_CHECKPOINT = Path("demo/checkpoint")
DEFAULT_TEXT = Path("README.md")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to compute the model."""

    name: str
    kernels: KernelChoice
    dtype: torch.dtype
    form: WeightForm = "model"
    shared_form: WeightForm = "model"


REFERENCE = Way("float32, torch: the reference", "torch", torch.float32)
WAYS = (
    Way("float32", "native", torch.float32),
    Way("float32, int8 experts", "native", torch.float32, "int8"),
    Way("float32, q8 experts", "native", torch.float32, "q8"),
    Way("float32, all in q8", "native", torch.float32, "q8", "q8"),
    Way("float32, q4 experts", "native", torch.float32, "q4"),
    Way("float32, all in q4", "native", torch.float32, "q4", "q4"),
    Way("float32, mxfp4 experts as stored", "native", torch.float32, "mxfp4"),
    Way("float32, fp8 experts as stored", "native", torch.float32, "fp8"),
    Way("bfloat16", "native", torch.bfloat16),
    Way("bfloat16, int8 experts", "native", torch.bfloat16, "int8"),
    Way("bfloat16, q8 experts", "native", torch.bfloat16, "q8"),
    Way("bfloat16, q4 experts", "native", torch.bfloat16, "q4"),
    Way("bfloat16, mxfp4 experts as stored", "native", torch.bfloat16, "mxfp4"),
    Way("bfloat16, fp8 experts as stored", "native", torch.bfloat16, "fp8"),
    Way("bfloat16, torch", "torch", torch.bfloat16),
)


@dataclass(frozen=True, slots=True)
class Row:
    """`divergence` is the mean over tokens, `worst` the largest of one token."""

    way: str
    divergence: float
    worst: float
    same_best: float
    perplexity: float


def ways_of(checkpoint: Checkpoint) -> Iterator[Way]:
    """Those that this machine and the checkpoint's experts can be computed in."""
    for way in WAYS:
        is_stored = stored_form(way.form) in (None, checkpoint.expert_form)
        if is_stored and (HAS_NATIVE or way.kernels == "torch"):
            yield way


def windows(checkpoint: Checkpoint, text: str, length: int, count: int) -> list[Tensor]:
    """The text's token ids, cut into windows [1, S]."""
    data = checkpoint.read_tokenizer()
    if data is None:
        raise SystemExit(f"{checkpoint.path}: has no tokenizer")
    tokenizer = Tokenizer.from_bytes(data, None, None)
    ids = torch.tensor(tokenizer.encode(text, add_bos=False))
    found = [ids[start : start + length][None] for start in range(0, len(ids) - length + 1, length)][:count]
    if not found:
        raise SystemExit(f"the text has {len(ids)} tokens, one window is {length}")
    return found


def log_probs(checkpoint: Checkpoint, way: Way, found: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of each window, [S, V] in float64."""
    kernels = choose_kernels(way.kernels, "cpu")
    experts = load_local_experts(checkpoint, way.dtype, "cpu", kernels, form=way.form)
    model = AssembledModel(load_model(checkpoint, experts, way.dtype, "cpu", kernels, form=way.shared_form))
    for ids_1S in found:
        logits_1SV, _ = model.forward(ids_1S)
        yield F.log_softmax(logits_1SV[0].double(), dim=-1)


def compare(checkpoint: Checkpoint, way: Way, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Row:
    divergences, same, losses = [], [], []
    for ids_1S, reference_SV, got_SV in zip(found, expected, log_probs(checkpoint, way, found), strict=True):
        divergences += (reference_SV.exp() * (reference_SV - got_SV)).sum(dim=-1).tolist()
        same += (reference_SV.argmax(-1) == got_SV.argmax(-1)).tolist()
        losses += F.nll_loss(got_SV[:-1], ids_1S[0, 1:], reduction="none").tolist()
    perplexity = float(torch.tensor(statistics.fmean(losses)).exp())
    return Row(way.name, statistics.fmean(divergences), max(divergences), statistics.fmean(same), perplexity)


def run(args: argparse.Namespace, report: Report) -> None:
    checkpoint = Checkpoint.open(args.checkpoint)
    length = min(args.window, checkpoint.config.max_seq_len)
    found = windows(checkpoint, args.text.read_text(encoding="utf-8"), length, args.windows)
    expected = list(log_probs(checkpoint, REFERENCE, found))
    print(f"{len(found)} windows of {length} tokens of {args.text.name}\n")
    print(f"{'way':<34} {'KL, mean':>10} {'KL, worst':>10} {'same best':>10} {'perplexity':>11}")
    rows = []
    for way in (REFERENCE, *ways_of(checkpoint)):
        row = compare(checkpoint, way, found, expected)
        rows.append(row)
        print(
            f"{row.way:<34} {row.divergence:>10.2e} {row.worst:>10.2e} {row.same_best:>10.4f} "
            f"{row.perplexity:>11.3f}",
            flush=True,
        )
    report.finish({"window": length, "windows": len(found), "rows": [asdict(row) for row in rows]})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Logits of each way to compute, against float32.")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT, help="a UTF-8 file")
    parser.add_argument("--window", type=int, default=256, help="tokens")
    parser.add_argument("--windows", type=int, default=16, help="at most")
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with reporting("quality", args.out, argv) as report:
        run(args, report)


if __name__ == "__main__":
    main()
