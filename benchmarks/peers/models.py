"""The models of a run: random weights, written once as a Hugging Face folder, which all systems are given.

Ours and transformers read the folder itself; llama.cpp reads files that are made of its tensors.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.process import PeerError, PeersEnvironment, last_line
from moe_model.checkpoint.exporter import export_checkpoint
from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import family_of

_COMMON: Mapping[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "vocab_size": 16384,
    # Room for a token after a prompt of 512.
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
# Two of about the same bytes. Widths divide into the blocks of 32 of llama.cpp's quantised weights.
MODELS: dict[str, Mapping[str, Any]] = {
    # Few large experts, of the parameters of ModularForge's default model.
    "mixtral": {
        **_COMMON,
        "model_type": "mixtral",
        "intermediate_size": 1376,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    # Many small ones; heads are wider together than the model, and have norms.
    "qwen3_moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 96,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}


def write_model(name: str, folder: Path) -> Checkpoint:
    """In bfloat16, so that every format up to that precision holds the same numbers."""
    _, config, _ = read_config(MODELS[name], Path(name))
    export_checkpoint(RandomModel(config, dtype=torch.bfloat16), folder)
    return Checkpoint.open(folder)


def write_llama_files(
    environment: PeersEnvironment, model: Path, folder: Path, llama_types: Sequence[str]
) -> None:
    """`folder`/TYPE.gguf for each type, of the tensors of `model`. Raises PeerError."""
    log = environment.logs / "weights.log"
    options = {"model": str(model), "folder": str(folder), "llama_types": list(llama_types)}
    with log.open("wb") as stderr:
        done = subprocess.run(
            environment.command("weights", options),
            env=environment.variables(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
        )
    if done.returncode != 0:
        raise PeerError(f"llama.cpp's weights were not written: {last_line(log)}")
    expected = family_of(config := Checkpoint.open(model).config).num_params(config)
    num_written = json.loads(done.stdout)["num_params"]
    if num_written != expected:
        raise PeerError(f"llama.cpp's weights have {num_written} parameters, the model {expected}")


def describe(name: str, checkpoint: Checkpoint) -> str:
    """What all are given."""
    config, family = checkpoint.config, family_of(checkpoint.config)
    return (
        f"{name}: {family.num_params(config) / 1e6:.2f} M parameters, "
        f"{family.num_active_params_per_token(config) / 1e6:.2f} M active; {config.n_layers} layers, "
        f"{config.n_experts} experts of 3 x {config.d_model} x {config.d_ff}, top {config.top_k}, "
        f"{config.n_heads} heads of {config.head_dim} over {config.n_kv_heads}, vocabulary "
        f"{config.vocab_size}; the same random weights for all systems"
    )
