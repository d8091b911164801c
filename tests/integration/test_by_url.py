"""Checkpoints by URL, with real processes: the tokens are those of a folder, and no byte more is fetched."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from expertmesh import Client
from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.manifest import expert_file
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import WorkerStartError
from moe_model.remote.listing import BLOCK_BYTES
from moe_model.remote.settings import CACHE
from moe_model.versions.expert_versions import checkpoint_modules
from tests.integration.processes import DEMO_CHECKPOINT, Server, assert_one_line_error, run_command
from tests.moe_model.remote.remote_folders import close_all
from tests.ranged_http import RangedServer

PROMPT = ("--prompt", "def main():", "--max-tokens", "24", "--temperature", "0")
# Experts of 3 MiB, in several files.
SIZES = {
    "model_type": "mixtral",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "vocab_size": 8000,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
SHARD_BYTES = 10_000_000
# Configs and looks.
SMALL_BYTES = 20_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Also of processes that a test starts."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    yield tmp_path / "cache"
    close_all()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / "config.json").write_text(json.dumps(SIZES))
    model = RandomModel(config_like(folder), dtype=torch.float32)
    export_checkpoint(model, folder / "model", ExportOptions(shard_bytes=SHARD_BYTES))
    return folder / "model"


def loaded(url: str, experts: range, fingerprint: str | None = None) -> ExpertWorker:
    worker = ExpertWorker(WorkerSpec(0, url, num_threads=1, fingerprint=fingerprint))
    worker.load(checkpoint_modules([(layer, expert) for layer in (0, 1) for expert in experts]))
    return worker


@pytest.mark.parametrize("experts", [range(1), range(2, 5), range(6)], ids=["one", "three", "all"])
def test_a_worker_fetches_its_own_experts(published: Path, experts: range) -> None:
    """And a block at each end of what lies in one piece, and the block of each file's header."""
    of_one = Checkpoint.open(published).experts_bytes // 12
    num_files = len(list(published.glob("*.safetensors")))
    assert num_files > 3
    with RangedServer(published) as server:
        worker = loaded(server.url, experts)
        assert len(worker.describe().keys) == 2 * len(experts)
        wanted = 2 * len(experts) * of_one
        overhead = (2 * len(experts) * 2 + num_files) * BLOCK_BYTES + SMALL_BYTES
        assert wanted <= server.num_bytes <= wanted + overhead
        # On the same machine another one finds them there.
        close_all()
        server.forget()
        loaded(server.url, experts)
        assert server.num_bytes < SMALL_BYTES


def test_a_worker_fetches_the_files_of_its_own_experts() -> None:
    """Of our own format: to the byte."""
    with RangedServer(DEMO_CHECKPOINT) as server:
        loaded(server.url, range(2))
        files = Checkpoint.open(DEMO_CHECKPOINT).files
        wanted = sum(files[expert_file(layer, expert)].size for layer in (0, 1) for expert in range(2))
        small = (DEMO_CHECKPOINT / "manifest.json").stat().st_size + files["tokenizer.json"].size
        # The manifest is read twice: for the list of files, and as one of them.
        assert wanted <= server.num_bytes <= wanted + 2 * small


def test_a_worker_refuses_what_is_not_the_coordinator_s(published: Path) -> None:
    refused = pytest.raises(WorkerStartError, match=r"http://127.0.0.1:\d+/: not the checkpoint that the")
    with RangedServer(published) as server, refused:
        loaded(f"{server.url.replace('://', '://me:hunter2@')}/", range(1), fingerprint="0" * 64)


READ = """
import sys
from moe_model.checkpoint.reader import Checkpoint
from moe_model.remote.open_url import open_url
checkpoint = Checkpoint.open(open_url(sys.argv[1]))
for layer in checkpoint.config.moe_layers:
    for expert in checkpoint.config.experts_of(layer):
        checkpoint.read_expert(layer, expert)
print(checkpoint.fingerprint)
"""


@pytest.mark.long
def test_processes_of_a_machine_fetch_each_block_once(published: Path) -> None:
    with RangedServer(published) as server:
        command = [sys.executable, "-c", READ, server.url]
        readers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        ended = [reader.communicate(timeout=100) for reader in readers]
        assert [reader.returncode for reader in readers] == [0, 0, 0], ended
        assert len({out for out, _ in ended}) == 1
        size = sum(path.stat().st_size for path in published.iterdir())
        assert server.num_bytes <= size + 3 * SMALL_BYTES


@pytest.mark.long
def test_served_by_url_the_tokens_are_the_same(tmp_path: Path) -> None:
    """With two workers, and secrets in the URL that nothing shows."""
    local = run_command("generate", str(DEMO_CHECKPOINT), *PROMPT, "--json")
    assert local.returncode == 0, local.stderr
    wanted = json.loads(local.stdout)
    with RangedServer(DEMO_CHECKPOINT) as www:
        www.wanted_query = "signature=s3cret"
        url = f"{www.url.replace('://', '://me:hunter2@')}?{www.wanted_query}"
        log = tmp_path / "log"
        with Server(url, "--workers", "2", log=log) as server:
            server.wait_ready()
            with Client(server.address) as client:
                found = client.generate("def main():", max_tokens=24, temperature=0, return_token_ids=True)
        assert list(found.token_ids) == wanted["token_ids"]
        assert b"hunter2" not in log.read_bytes()
        assert b"s3cret" not in log.read_bytes()
        size = sum(path.stat().st_size for path in DEMO_CHECKPOINT.rglob("*") if path.is_file())
        assert www.num_bytes < size + 3 * SMALL_BYTES


@pytest.mark.long
def test_the_commands_take_urls(published: Path, tmp_path: Path) -> None:
    with RangedServer(published) as server:
        inspected = run_command("inspect", server.url, "--json")
        assert inspected.returncode == 0, inspected.stderr
        assert json.loads(inspected.stdout)["family"] == "mixtral"
        assert server.num_bytes < 10 * BLOCK_BYTES
        imported = run_command("import", f"file://{published}", str(tmp_path / "mine"))
        assert imported.returncode == 0, imported.stderr
        server.has_ranges = False
        assert_one_line_error(run_command("inspect", f"{server.url}/"), "no ranges of them")
    assert_one_line_error(run_command("generate", "ftp://host/model", *PROMPT), "'ftp' is not one of")
