"""The two models of a run, ours and the peers', of as nearly the same number of parameters as can be."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.peers.jobs import MixtralSize
from benchmarks.peers.process import PeerError, PeersEnvironment, last_line
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.families import family_of

# The default's 512 positions would leave no room for a token after a prompt of 512; positions are no weights.
MAX_SEQ_LEN = 1024
# What llama.cpp's blocks of quantised weights divide into.
WIDTH_STEP = 32


def our_checkpoint(folder: Path, dtype: torch.dtype) -> Checkpoint:
    """ModularForge's default model with random weights."""
    initialise_checkpoint(folder, ModelConfig(max_seq_len=MAX_SEQ_LEN), dtype=dtype)
    return Checkpoint.open(folder)


def mixtral_like(config: ModelConfig) -> MixtralSize:
    """Three matrices of two thirds of the width have the parameters of two."""
    return MixtralSize(
        d_model=config.d_model,
        d_ff=-(-2 * config.d_ff // (3 * WIDTH_STEP)) * WIDTH_STEP,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_experts=config.n_experts,
        top_k=config.top_k,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
    )


def write_peer_models(
    environment: PeersEnvironment, folder: Path, size: MixtralSize, llama_types: Sequence[str]
) -> None:
    """The same weights for transformers and, once a type, for llama.cpp. Raises PeerError."""
    log = environment.logs / "weights.log"
    options = {"folder": str(folder), "size": asdict(size), "llama_types": list(llama_types)}
    with log.open("wb") as stderr:
        done = subprocess.run(
            environment.command("weights", options),
            env=environment.variables(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
        )
    if done.returncode != 0:
        raise PeerError(f"the peers' weights were not written: {last_line(log)}")
    num_written = json.loads(done.stdout)["num_params"]
    assert num_written == size.num_params, f"{num_written} parameters written, {size.num_params} counted"


def describe(config: ModelConfig, size: MixtralSize) -> list[str]:
    """What is compared with what."""
    family = family_of(config)
    ours = (family.num_params(config), family.num_active_params_per_token(config))
    theirs = (size.num_params, size.num_active_params)
    return [
        f"ours  {_counts(ours)}: LayerNorm, sinusoidal positions, GELU experts "
        f"2 x {config.d_model} x {config.d_ff} with biases and a norm each",
        f"peers {_counts(theirs)}: RMSNorm, rotary positions, SwiGLU experts "
        f"3 x {size.d_model} x {size.d_ff}",
        f"both  {config.n_layers} layers, {config.n_experts} experts, top {config.top_k}, "
        f"{config.n_heads} heads, vocabulary {config.vocab_size}, tied embedding, random weights",
    ]


def _counts(params: tuple[int, int]) -> str:
    return f"{params[0] / 1e6:.2f} M parameters, {params[1] / 1e6:.2f} M active"
