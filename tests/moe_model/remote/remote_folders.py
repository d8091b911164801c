"""Folders behind URLs, and what a checkpoint that was opened by one must equal."""

from pathlib import Path

import torch

from moe_model.checkpoint.reader import Checkpoint
from moe_model.remote import open_url as opening
from tests.moe_model.checkpoint.hugging_face.written import CONFIG, make_tensors, write_folder

_VOCABULARY = 40_000


def write_published(folder: Path) -> Path:
    """In three files with tensors, of which two have more than the block of their headers."""
    rows = ("model.embed_tokens.weight", "lm_head.weight")
    tensors = make_tensors() | {name: torch.randn(_VOCABULARY, 8) for name in rows}
    write_folder(folder, tensors, {**CONFIG, "vocab_size": _VOCABULARY}, shards=3)
    (folder / "chat_template.jinja").write_bytes(b"")
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    return folder


def tensor_file(folder: Path) -> Path:
    """Its first."""
    return min(folder.rglob("*.safetensors"))


def assert_same(found: Checkpoint, folder: Path) -> None:
    """Every tensor."""
    wanted = Checkpoint.open(folder)
    shared = found.read_shared()
    for name, tensor in wanted.read_shared().items():
        assert torch.equal(shared[name], tensor), name
    for layer in wanted.config.moe_layers:
        for expert in wanted.config.experts_of(layer):
            theirs = found.read_expert(layer, expert)
            for name, tensor in wanted.read_expert(layer, expert).items():
                assert torch.equal(theirs[name], tensor), name


def close_all() -> None:
    """As the end of a process does."""
    for mirror in opening._OPENED.values():
        mirror.close()
    opening._OPENED.clear()
