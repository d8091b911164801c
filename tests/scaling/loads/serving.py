"""A real server with the demo's checkpoint, and what a load must know of it."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import serving
from scaling.loads.base import Target

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "demo" / "checkpoint"
VOCAB_SIZE, MAX_SEQ_LEN = 4096, 512


@contextmanager
def demo_server(folder: Path, *arguments: str) -> Iterator[Target]:
    """All experts in one process; ready when the block begins."""
    with serving(
        CHECKPOINT, ["--workers=0", "--model-name=demo", *arguments], folder / "serve.log"
    ) as server:
        yield Target(
            grpc_address=server.address,
            http_address=server.http_address,
            model_name="demo",
            vocab_size=VOCAB_SIZE,
            max_seq_len=MAX_SEQ_LEN,
            tokenizer=CHECKPOINT / "tokenizer.json",
        )


def counted(target: Target, name: str) -> float:
    """All samples of one of the server's counters together."""
    with urllib.request.urlopen(f"http://{target.http_address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"expertmesh_{name}"
    )
