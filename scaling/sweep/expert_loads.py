"""How often each expert is chosen: of a few requests after a measurement, which ask for their routing.

Measured requests do not ask for it, as that costs something in each step.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from benchmarks.load import OPTIONS, request
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from scaling.loads.base import Target

# So many requests of at most so many tokens.
NUM_REQUESTS, MOST_TOKENS = 8, 64
_TIMEOUT = 60.0


def loads_LE(
    target: Target, moe_layers: tuple[int, ...], num_experts: int, num_tokens: int, seed: int
) -> list[list[int]]:
    """Rows of each expert (of `num_experts`) of each layer that has experts, of random prompts. Raises
    RuntimeError, a line."""
    rng = random.Random(seed)
    length = max(2, min(num_tokens, MOST_TOKENS, target.max_seq_len - 1))
    prompts = [[rng.randrange(target.vocab_size) for _ in range(length)] for _ in range(NUM_REQUESTS)]
    found = np.zeros((len(moe_layers), num_experts), np.int64)
    with grpc.insecure_channel(target.grpc_address, options=OPTIONS) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]

        def routed(prompt: list[int]) -> pb.RoutedExperts:
            message = request(prompt, 1)
            message.response.return_routed_experts = True
            routing: pb.RoutedExperts = stub.Generate(message, timeout=_TIMEOUT).outputs[0].routed_experts
            return routing

        try:
            with ThreadPoolExecutor(NUM_REQUESTS) as pool:
                for each in pool.map(routed, prompts):
                    _count(each, found)
        except grpc.RpcError as error:
            raise RuntimeError(f"the routing was not told: {error.code().name}") from error  # type: ignore[attr-defined]
    return [[int(num) for num in row] for row in found]


def _count(routed: pb.RoutedExperts, found_LE: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> None:
    is_wide = routed.element_type == pb.RoutedExperts.ELEMENT_TYPE_UINT16
    ids = np.frombuffer(routed.data, "<u2" if is_wide else "u1")
    ids_TLK = ids.reshape(routed.num_tokens, routed.num_layers, routed.experts_per_token)
    if ids_TLK.shape[1] != len(found_LE) or (ids_TLK.size and ids_TLK.max() >= found_LE.shape[1]):
        raise RuntimeError("the routing is of another model")
    for layer, row_E in enumerate(found_LE):
        row_E += np.bincount(ids_TLK[:, layer].ravel(), minlength=len(row_E))
