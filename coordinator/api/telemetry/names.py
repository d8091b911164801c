"""The prefix of our metrics' names, and the bucket edges of requests': vLLM's, so that its panels fit.

`COMPATIBLE` are those that are also told under vLLM's names on request.
"""

from collections.abc import Sequence

from coordinator.metrics.families import PREFIX as PREFIX

TIME_TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)
NUM_SEQUENCES = (1.0, 2.0, 5.0, 10.0, 20.0)
_SAME = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"),
    *("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"),
    *("num_preemptions", "request_success", "time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens"),
    *("request_params_n", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
)
# Ours -> vLLM's. The one that differs is a histogram with a counter's suffix there, which its panels ask for.
COMPATIBLE = {**{stem: stem for stem in _SAME}, "iteration_tokens": "iteration_tokens_total"}


def one_two_five(most: int) -> Sequence[float]:
    """1, 2, 5, 10, ... up to `most`."""
    edges: list[float] = []
    scale = 1
    while scale <= most:
        edges += [float(scale * digit) for digit in (1, 2, 5) if scale * digit <= most]
        scale *= 10
    return edges
