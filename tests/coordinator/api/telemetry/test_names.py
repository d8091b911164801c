"""Every metric of the interface by name, type and labels; nobody's input makes a new one."""

import asyncio
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.telemetry.metrics import Metrics, MetricSources
from coordinator.engine.messages.metrics import MetricsSnapshot
from coordinator.engine.messages.records import StepRecord
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.engine.telemetry.counts import EngineCounts
from expert_workers.status import WorkerState, WorkerStatus
from expert_workers.transports.base import FailureReason
from moe_model.versions.expert_versions import ExpertModule
from tests.coordinator.api.made_requests import resolved

MODEL = {"model_name"}
EXPECTED = {
    "expertmesh_num_requests_running": ("gauge", MODEL),
    "expertmesh_num_requests_waiting": ("gauge", MODEL),
    "expertmesh_kv_cache_usage_perc": ("gauge", MODEL),
    "expertmesh_cache_config_info": ("gauge", MODEL | {"block_size", "num_blocks"}),
    "expertmesh_prompt_tokens": ("counter", MODEL),
    "expertmesh_generation_tokens": ("counter", MODEL),
    "expertmesh_prefix_cache_queries": ("counter", MODEL),
    "expertmesh_prefix_cache_hits": ("counter", MODEL),
    "expertmesh_num_preemptions": ("counter", MODEL),
    "expertmesh_request_success": ("counter", MODEL | {"finished_reason"}),
    "expertmesh_request_errors": ("counter", MODEL | {"code", "reason"}),
    "expertmesh_requests_rejected": ("counter", MODEL | {"reason"}),
    "expertmesh_time_to_first_token_seconds": ("histogram", MODEL),
    "expertmesh_inter_token_latency_seconds": ("histogram", MODEL),
    "expertmesh_request_time_per_output_token_seconds": ("histogram", MODEL),
    "expertmesh_e2e_request_latency_seconds": ("histogram", MODEL),
    "expertmesh_request_queue_time_seconds": ("histogram", MODEL),
    "expertmesh_request_prefill_time_seconds": ("histogram", MODEL),
    "expertmesh_request_decode_time_seconds": ("histogram", MODEL),
    "expertmesh_request_inference_time_seconds": ("histogram", MODEL),
    "expertmesh_request_prompt_tokens": ("histogram", MODEL),
    "expertmesh_request_generation_tokens": ("histogram", MODEL),
    "expertmesh_request_params_max_tokens": ("histogram", MODEL),
    "expertmesh_request_params_n": ("histogram", MODEL),
    "expertmesh_iteration_tokens": ("histogram", MODEL),
    "expertmesh_step_seconds": ("histogram", MODEL | {"phase"}),
    "expertmesh_spec_decode_num_draft_tokens": ("counter", MODEL),
    "expertmesh_spec_decode_num_accepted_tokens": ("counter", MODEL),
    "expertmesh_expert_workers": ("gauge", MODEL | {"state"}),
    "expertmesh_expert_worker_up": ("gauge", MODEL | {"rank"}),
    "expertmesh_experts_missing": ("gauge", MODEL),
    "expertmesh_expert_replicas_min": ("gauge", MODEL),
    "expertmesh_expert_replicas_wanted": ("gauge", MODEL),
    "expertmesh_ready": ("gauge", MODEL),
    "expertmesh_readiness_losses": ("counter", MODEL),
    "expertmesh_certificate_expiry_timestamp_seconds": ("gauge", MODEL | {"certificate"}),
    "expertmesh_expert_tokens": ("counter", MODEL | {"rank"}),
    "expertmesh_expert_balancedness": ("histogram", MODEL | {"phase"}),
    "expertmesh_expert_dispatch_seconds": ("histogram", MODEL),
    "expertmesh_expert_compute_seconds": ("histogram", MODEL | {"rank"}),
    "expertmesh_expert_combine_seconds": ("histogram", MODEL),
    "expertmesh_expert_straggler_seconds": ("histogram", MODEL),
    "expertmesh_expert_bytes": ("counter", MODEL | {"direction"}),
    "expertmesh_expert_dropped_tokens": ("counter", MODEL),
    "expertmesh_expert_worker_restarts": ("counter", MODEL | {"reason"}),
    "expertmesh_expert_worker_losses": ("counter", MODEL | {"reason"}),
    "expertmesh_expert_hedges": ("counter", MODEL),
    "expertmesh_expert_retries": ("counter", MODEL | {"reason"}),
    "expertmesh_expert_rebalances": ("counter", MODEL),
    "expertmesh_expert_rebalance_seconds": ("histogram", MODEL),
    "expertmesh_expert_exchanges": ("counter", MODEL | {"kind"}),
    "expertmesh_expert_version": ("gauge", MODEL | {"layer", "expert"}),
    "grpc_server_started": ("counter", {"grpc_type", "grpc_service", "grpc_method"}),
    "grpc_server_handled": ("counter", {"grpc_type", "grpc_service", "grpc_method", "grpc_code"}),
    "grpc_server_handling_seconds": ("histogram", {"grpc_type", "grpc_service", "grpc_method"}),
    "expertmesh_grpc_unknown_fields": ("counter", {"grpc_service", "grpc_method"}),
    "http_requests": ("counter", {"handler", "method", "status"}),
    "http_request_duration_seconds": ("histogram", {"handler", "method", "status"}),
}


# One expert of a thousand is in its second version.
STATUS = ModelStatus(((0,),), 2, (ExpertModule(1, 1001, 7, 2),), {"replace": 2, "add": 0, "remove": 0})


@dataclass(frozen=True)
class Opened:
    """Metrics of a server, and what its engine counts."""

    metrics: Metrics
    engine: EngineCounts

    def text(self, accept: str = "") -> tuple[str, str]:
        """What a scraper gets, and its content type."""
        text, content_type = asyncio.run(self.metrics.answer(accept))
        return text.decode(), content_type


def opened(*, vllm_names: bool = False) -> Opened:
    metrics = Metrics(vllm_names=vllm_names)
    ready = [WorkerStatus(rank, WorkerState.READY, experts={0: (rank,)}) for rank in range(2)]
    workers = WorkersStatus(tuple(ready), num_replicas=1, certificate_end=1.5e9)
    stats = EngineStats(num_running=3, num_blocks=8, kv_usage=0.25, prefix_queries=10, prefix_hits=4)
    counts = EngineCounts()
    counts.open(range(2))

    async def counted() -> MetricsSnapshot:
        return counts.snapshot()

    sources = MetricSources(
        *(lambda: stats, lambda: STATUS, lambda: workers, 16, counted),
        certificates=lambda: {"server": 2e9},
        replicas=2,
    )
    metrics.open("tiny", 512, sources)
    return Opened(metrics, counts)


def fed(server: Opened, request_id: str = "a") -> None:
    metrics, engine = server.metrics, server.engine
    caller = Caller(request_id)
    facts = Facts(resolved(""), "tiny", 0, 3, {0: "length"}, 0.1, 0.2, 0.5, [(0.05, 2)])
    metrics.requests.finished(caller, facts, None, cancelled=False)
    error = ApiError.of(Reason.QUEUE_FULL, "full")
    metrics.requests.finished(caller, Facts(), error, cancelled=False)
    dispatch = SimpleNamespace(
        layer=0,
        seconds=0.01,
        combine_seconds=0.001,
        bytes_sent=10,
        bytes_received=20,
        rows={0: 3, 1: 1},
        compute_seconds={0: 0.004, 1: 0.002},
        retries={},
        num_hedged=0,
    )
    engine.dispatched([dispatch, dispatch])
    engine.step(StepRecord(0, 1, 0.01, 5, 2, 5, 5))
    engine.restarted(1, FailureReason.DIED)
    engine.recorded(3, True)
    metrics.fronts.unknown_fields("expertmesh.v1.GenerationService", "Generate")
    metrics.fronts.call_started("unary", "s", "m")
    metrics.fronts.call_ended("unary", "s", "m", "OK", 0.1)
    metrics.fronts.http_observed("/v1/completions", "POST", 200, 0.1)


def families(server: Opened) -> dict[str, object]:
    return {family.name: family for family in text_string_to_metric_families(server.text()[0])}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_metric(name: str) -> None:
    server = opened()
    fed(server)
    family = families(server)[name]
    kind, labels = EXPECTED[name]
    assert family.type == kind  # type: ignore[attr-defined]
    found = {label for sample in family.samples for label in sample.labels} - {"le"}  # type: ignore[attr-defined]
    assert found == labels


def test_there_are_no_others() -> None:
    server = opened()
    fed(server)
    assert set(families(server)) == set(EXPECTED)
    assert "_created" not in server.text()[0]


def test_values() -> None:
    server = opened()
    fed(server)
    text, _ = server.text()
    for line in (
        'expertmesh_expert_exchanges_total{kind="replace",model_name="tiny"} 2.0',
        'expertmesh_expert_version{expert="7",layer="1",model_name="tiny"} 2.0',
        'expertmesh_kv_cache_usage_perc{model_name="tiny"} 0.25',
        'expertmesh_request_success_total{finished_reason="length",model_name="tiny"} 1.0',
        'expertmesh_requests_rejected_total{model_name="tiny",reason="QUEUE_FULL"} 1.0',
        'expertmesh_expert_workers{model_name="tiny",state="ready"} 2.0',
        'expertmesh_expert_replicas_min{model_name="tiny"} 1.0',
        'expertmesh_expert_replicas_wanted{model_name="tiny"} 2.0',
        'expertmesh_certificate_expiry_timestamp_seconds{certificate="server",model_name="tiny"} 2e+09',
        'expertmesh_certificate_expiry_timestamp_seconds{certificate="data",model_name="tiny"} 1.5e+09',
        'expertmesh_expert_tokens_total{model_name="tiny",rank="0"} 6.0',
        'expertmesh_expert_worker_restarts_total{model_name="tiny",reason="died"} 1.0',
        'expertmesh_expert_balancedness_sum{model_name="tiny",phase="prefill"} 0.6666666666666666',
        'expertmesh_expert_balancedness_count{model_name="tiny",phase="prefill"} 1.0',
        'expertmesh_expert_balancedness_count{model_name="tiny",phase="decode"} 0.0',
        'expertmesh_inter_token_latency_seconds_count{model_name="tiny"} 2.0',
    ):
        assert line in text, line


def test_what_ended_while_it_ran_was_not_rejected() -> None:
    server = opened()
    for reason in (Reason.EXPERT_WORKER_LOST, Reason.SLOW_CONSUMER, Reason.OUT_OF_MEMORY):
        server.metrics.requests.finished(Caller("a"), Facts(), ApiError.of(reason, "x"), cancelled=False)
    text, _ = server.text()
    assert rises(text, "expertmesh_requests_rejected_total") == {}
    assert rises(text, "expertmesh_request_errors_total") == dict.fromkeys(
        ("EXPERT_WORKER_LOST", "SLOW_CONSUMER", "OUT_OF_MEMORY"), 1.0
    )


def rises(text: str, name: str) -> dict[str, float]:
    """Counts by their reason that are not 0."""
    found = re.findall(rf'^{name}{{.*reason="(\w+)"}} (\S+)$', text, re.MULTILINE)
    return {reason: float(count) for reason, count in found if float(count)}


def test_what_alerts_count_is_there_before_it_happens() -> None:
    """No rate shows the first one of a series that begins with it."""
    text, _ = opened().text()
    for name, reasons in (
        ("request_errors", ("INTERNAL", "ENGINE_LOST", "EXPERT_WORKER_LOST", "OUT_OF_MEMORY", "NO_PROCESS")),
        ("requests_rejected", ("QUEUE_FULL", "QUOTA_EXCEEDED", "NOT_READY", "DRAINING")),
        ("expert_worker_losses", [reason.value for reason in FailureReason]),
    ):
        found = re.findall(rf'^expertmesh_{name}_total{{.*reason="(\w+)"}} 0.0$', text, re.MULTILINE)
        assert sorted(found) == sorted(reasons)


def test_a_request_that_was_left_has_no_queue_time() -> None:
    server = opened()
    facts = Facts(resolved(""), "tiny", time_to_first_token=0.2, total_time=0.5)
    server.metrics.requests.finished(Caller("a"), facts, None, cancelled=True)
    text, _ = server.text()
    assert 'expertmesh_time_to_first_token_seconds_count{model_name="tiny"} 1.0' in text
    assert 'expertmesh_request_queue_time_seconds_count{model_name="tiny"} 0.0' in text


def test_vllms_names_have_the_same_values() -> None:
    server = opened(vllm_names=True)
    fed(server)
    text, _ = server.text()
    assert 'vllm:num_requests_running{model_name="tiny"} 3.0' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="tiny"} 1.0' in text
    assert 'vllm:generation_tokens_total{model_name="tiny"} 3.0' in text
    assert "vllm:expert" not in text


def test_nobody_can_make_series() -> None:
    server = opened()
    metrics = server.metrics
    fed(server)
    before = server.text()[0].count("\n")
    for number in range(10_000):
        caller = Caller(f"id-{number}", peer=f"1.2.3.{number}:1")
        metrics.requests.finished(caller, Facts(), None, cancelled=False)
        metrics.fronts.http_observed("unknown", f"M{number}", 404, 0.0)
    assert server.text()[0].count("\n") <= before + 40
