"""How often each expert is chosen: of a few requests after a measurement, which ask for their routing.

Measured requests do not ask for it, as that costs something in each step.
"""

import math
import random
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from benchmarks.load import OPTIONS, request
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from scaling.cell import Load
from scaling.loads.base import Target

# So many requests of at most so many tokens.
Counts_LE = np.ndarray[tuple[int, int], np.dtype[np.int64]]
NUM_REQUESTS, MOST_TOKENS = 8, 64
_TIMEOUT = 60.0


def loads_of_experts(
    target: Target, moe_layers: int, num_experts: int, load: Load, seed: int
) -> list[list[int]]:
    """Rows of each of `num_experts` experts of each of `moe_layers` layers, prompts' tokens and drawn ones.
    Raises RuntimeError, a line."""
    num_prompt = max(2, min(load.prompt_tokens, MOST_TOKENS, target.max_seq_len // 2))
    num_output = max(2, min(load.output_tokens, MOST_TOKENS, target.max_seq_len - num_prompt))
    rng = random.Random(seed)
    prompts = [[rng.randrange(target.vocab_size) for _ in range(num_prompt)] for _ in range(NUM_REQUESTS)]
    found = np.zeros((moe_layers, num_experts), np.int64)
    with grpc.insecure_channel(target.grpc_address, options=OPTIONS) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]

        def asked(prompt: list[int]) -> pb.GenerateResponse:
            message = request(prompt, num_output)
            message.response.return_routed_experts = True
            response: pb.GenerateResponse = stub.Generate(message, timeout=_TIMEOUT)
            return response

        try:
            with ThreadPoolExecutor(NUM_REQUESTS) as pool:
                for response in pool.map(asked, prompts):
                    count(response.prompt.routed_experts, found)
                    count(response.outputs[0].routed_experts, found)
        except grpc.RpcError as error:
            raise RuntimeError(f"the routing was not told: {error.code().name}") from error
    return [[int(num) for num in row_E] for row_E in found]


def count(routed: pb.RoutedExperts, found_LE: Counts_LE) -> None:
    """Adds what one message tells. Raises RuntimeError where it does not fit the model."""
    shape = (routed.num_tokens, routed.num_layers, routed.experts_per_token)
    if not routed.num_tokens:
        return
    is_wide = routed.element_type == pb.RoutedExperts.ELEMENT_TYPE_UINT16
    ids = np.frombuffer(routed.data, "<u2" if is_wide else "u1")
    if shape[1] != len(found_LE) or ids.size != math.prod(shape) or ids.max() >= found_LE.shape[1]:
        raise RuntimeError("the routing is of another model")
    ids_TLK = ids.reshape(shape)
    for layer, row_E in enumerate(found_LE):
        row_E += np.bincount(ids_TLK[:, layer].ravel(), minlength=len(row_E))
