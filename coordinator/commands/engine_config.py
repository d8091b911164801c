"""What the engine's arguments mean. Apart from these, which load no torch."""

import argparse

from coordinator.server.config import EngineConfig
from moe_model.checkpoint.manifest import DTYPES


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Of a command that has add_engine_arguments and add_worker_arguments."""
    return EngineConfig(
        dtype=DTYPES[args.dtype],
        expert_dtype=args.expert_dtype,
        kernels=args.kernels,
        device=args.device,
        num_threads=args.threads,
        kv_cache_bytes=None if args.kv_cache_mib is None else args.kv_cache_mib << 20,
        max_num_seqs=args.max_batch,
        max_step_tokens=args.max_step_tokens,
        prefix_caching=args.prefix_caching,
        micro_batches=None if args.micro_batches == "auto" else int(args.micro_batches),
    )
