"""The rows of the error table: requests of both fronts that meet them, and what each front then says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.api.security.api_keys import ApiKeys, key_of
from coordinator.api.security.auth import KeyAuthenticator
from coordinator.api.shared.errors import Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.engine.messages.errors import (
    CapacityError,
    ConstraintError,
    EngineLostError,
    SlowConsumerError,
    StepMemoryError,
)
from coordinator.engine.messages.request import ConstraintSource
from moe_model.errors import ExpertsLostError, NoProcessError
from tests.coordinator.api.both_fronts import Setup
from tests.coordinator.api.fakes import Step, served_model

KEY = "em-alice-alice-alice"
BAD, SERVER, RATE = "invalid_request_error", "server_error", "rate_limit_error"
FULL = frozenset({"RetryInfo", "QuotaFailure"})
LONG = "context_length_exceeded"


class Strict:
    """A checker of constraints that finds fault with each."""

    kinds = ("json_schema", "regex", "grammar")

    def check(self, source: ConstraintSource) -> None:
        raise ConstraintError("line 1: is wrong")


@dataclass(frozen=True)
class Case:
    """A request, the server that refuses it, and what it says. `body` and `text` are the same request.

    `busy`: another request runs meanwhile, whose id is "busy". `hangs`: the engine never says a thing.
    """

    name: str
    text: str
    body: Mapping[str, Any] | bytes
    grpc: tuple[str, Reason]
    http: tuple[int, str, str]
    where: str = ""
    param: str | None = None
    details: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/completions"
    script: tuple[Step, ...] = ()
    setup: Setup | None = None
    model: Callable[[], ServedModel] = served_model
    busy: bool = False
    hangs: bool = False
    drains: bool = False
    key: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether every server refuses it."""
        special = self.script or self.busy or self.hangs or self.drains
        return self.setup is None and self.model is served_model and not special


def bad(name: str, text: str, body: Mapping[str, Any] | bytes, where: str, param: str, **more: Any) -> Case:
    """INVALID_ARGUMENT for a field."""
    reason, code = more.pop("reason", Reason.INVALID_FIELD), more.pop("code", "invalid_value")
    grpc, http = ("INVALID_ARGUMENT", reason), (400, BAD, code)
    return Case(name, text, body, grpc, http, where, param, frozenset({"BadRequest"}), **more)


def raised(
    name: str, error: Exception, code: str, reason: Reason, http: tuple[int, str, str], **more: Any
) -> Case:
    """What the engine raises for a request that is fine."""
    return Case(name, 'text: "x"', {"prompt": "x"}, (code, reason), http, script=(error,), **more)


def guarded(*, needs_admin: bool = False) -> Setup:
    authenticator = KeyAuthenticator(ApiKeys([key_of("alice", KEY)]))
    return Setup(authenticator=authenticator, needs_admin=needs_admin)


def no_context(num_prompt: int, max_tokens: int) -> Mapping[str, str]:
    return {
        "prompt_tokens": str(num_prompt),
        "max_tokens": str(max_tokens),
        "max_context_length": "32",
    }


FINE: dict[str, Any] = {"text": 'text: "x"', "body": {"prompt": "x"}}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
RETRY = frozenset({"RetryInfo"})

CASES = (
    bad(
        "out of range",
        'text: "x" sampling { top_p: 2 }',
        {"prompt": "x", "top_p": 2},
        "sampling.top_p",
        "top_p",
    ),
    bad(
        "not finite",
        'text: "x" sampling { temperature: inf }',
        b'{"prompt": "x", "temperature": 1e999}',
        "sampling.temperature",
        "temperature",
    ),
    bad("no prompt", "", {"prompt": None}, "prompt", "prompt"),
    bad(
        "token id",
        "token_ids { ids: [5, 320] }",
        {"prompt": [5, 320]},
        "prompt.token_ids[1]",
        "prompt[1]",
        reason=Reason.TOKEN_ID_OUT_OF_RANGE,
        metadata={"vocab_size": "320"},
    ),
    bad(
        "long prompt",
        "token_ids { ids: [" + ", ".join("5" * 40) + "] } stopping { max_tokens: 1 }",
        {"prompt": [5] * 40, "max_tokens": 1},
        "prompt.token_ids",
        "prompt",
        reason=Reason.CONTEXT_LENGTH_EXCEEDED,
        code=LONG,
        metadata=no_context(40, 1),
    ),
    bad(
        "long prompt and output",
        "token_ids { ids: [5, 5] } stopping { max_tokens: 31 }",
        {"prompt": [5, 5], "max_tokens": 31},
        "stopping.max_tokens",
        "max_tokens",
        reason=Reason.CONTEXT_LENGTH_EXCEEDED,
        code=LONG,
        metadata=no_context(2, 31),
    ),
    *(
        bad(
            f"wrong {kind}",
            f'text: "x" constraint {{ {kind}: "{{}}" }}',
            {"prompt": "x", **body},
            f"constraint.{kind}",
            next(iter(body)),
            reason=Reason.INVALID_CONSTRAINT,
            model=lambda: served_model(constraints=Strict()),
        )
        for kind, body in (
            ("json_schema", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
            ("regex", {"guided_regex": "{}"}),
            ("grammar", {"guided_grammar": "{}"}),
        )
    ),
    *(
        Case(
            f"unsupported {where}",
            f'text: "x" {text}',
            {"prompt": "x", **body},
            ("UNIMPLEMENTED", Reason.UNSUPPORTED_FEATURE),
            (400, BAD, "unsupported_parameter"),
            where,
            param,
            frozenset({"BadRequest"}),
        )
        for text, body, where, param in (
            ("constraint { regex: 'a' }", {"guided_regex": "a"}, "constraint.regex", "guided_regex"),
            (
                "response { return_routed_experts: true }",
                {"return_routed_experts": True},
                "response.return_routed_experts",
                "return_routed_experts",
            ),
        )
    ),
    Case(
        "no chat template",
        'chat { messages { role: "user" content: "x" } }',
        CHAT,
        ("FAILED_PRECONDITION", Reason.NO_CHAT_TEMPLATE),
        (400, BAD, "no_chat_template"),
        "prompt.chat",
        "messages",
        frozenset({"BadRequest", "PreconditionFailure"}),
        path="/v1/chat/completions",
    ),
    Case(
        "no tokenizer",
        **FINE,
        grpc=("FAILED_PRECONDITION", Reason.NO_TOKENIZER),
        http=(400, BAD, "no_tokenizer"),
        where="prompt.text",
        param="prompt",
        details=frozenset({"BadRequest", "PreconditionFailure"}),
        model=lambda: served_model(tokenizer=None),
    ),
    Case(
        "small cache",
        "token_ids { ids: [5, 5, 5] } stopping { max_tokens: 1 }",
        {"prompt": [5, 5, 5], "max_tokens": 1},
        ("FAILED_PRECONDITION", Reason.KV_CAPACITY_TOO_SMALL),
        (400, BAD, LONG),
        "prompt.token_ids",
        "prompt",
        frozenset({"BadRequest", "PreconditionFailure"}),
        {"capacity": "2", "needed": "4"},
        model=lambda: served_model(kv_capacity_tokens=2),
    ),
    raised(
        "small cache, in the engine",
        CapacityError("/secret/path"),
        "FAILED_PRECONDITION",
        Reason.KV_CAPACITY_TOO_SMALL,
        (400, BAD, LONG),
        details=frozenset({"PreconditionFailure"}),
    ),
    Case(
        "unknown model",
        'text: "x" model: "other"',
        {"prompt": "x", "model": "other"},
        ("NOT_FOUND", Reason.MODEL_NOT_FOUND),
        (404, BAD, "model_not_found"),
        details=frozenset({"ResourceInfo"}),
    ),
    Case(
        "running id",
        'text: "x" request_id: "busy"',
        {"prompt": "x", "request_id": "busy"},
        ("ALREADY_EXISTS", Reason.DUPLICATE_REQUEST_ID),
        (409, BAD, "duplicate_request_id"),
        details=frozenset({"ResourceInfo"}),
        headers={"x-should-retry": "false"},
        busy=True,
    ),
    *(
        Case(
            f"{name} key",
            **FINE,
            grpc=("UNAUTHENTICATED", reason),
            http=(401, "authentication_error", "invalid_api_key"),
            headers={"www-authenticate": "Bearer"},
            setup=guarded(),
            key=key,
        )
        for name, key, reason in (
            ("no", "", Reason.MISSING_API_KEY),
            ("wrong", "em-wrong-wrong-wrong", Reason.INVALID_API_KEY),
        )
    ),
    Case(
        "full queue",
        **FINE,
        grpc=("RESOURCE_EXHAUSTED", Reason.QUEUE_FULL),
        http=(429, RATE, "queue_full"),
        details=FULL,
        headers={"retry-after": "1"},
        setup=Setup(max_requests=1),
        busy=True,
    ),
    raised(
        "slow reader",
        SlowConsumerError("/secret/path"),
        "RESOURCE_EXHAUSTED",
        Reason.SLOW_CONSUMER,
        (503, SERVER, "slow_consumer"),
        headers={"x-should-retry": "false"},
    ),
    Case(
        "starting",
        **FINE,
        grpc=("UNAVAILABLE", Reason.NOT_READY),
        http=(503, SERVER, "not_ready"),
        details=RETRY,
        headers={"retry-after": "1"},
        setup=Setup(ready=False),
    ),
    Case(
        "draining",
        **FINE,
        grpc=("UNAVAILABLE", Reason.DRAINING),
        http=(503, SERVER, "not_ready"),
        details=RETRY,
        headers={"retry-after": "1"},
        drains=True,
    ),
    raised(
        "lost worker",
        ExpertsLostError("10.0.0.7 /secret/path", ranks=(1, 3)),
        "UNAVAILABLE",
        Reason.EXPERT_WORKER_LOST,
        (503, SERVER, "expert_worker_lost"),
        details=RETRY,
        metadata={"rank": "1,3"},
        headers={"retry-after": "5"},
    ),
    raised(
        "an engine that has died",
        EngineLostError("/secret/path"),
        "UNAVAILABLE",
        Reason.ENGINE_LOST,
        (503, SERVER, "engine_lost"),
        details=RETRY,
        headers={"retry-after": "2"},
    ),
    raised(
        "no process",
        NoProcessError("/secret/path"),
        "UNAVAILABLE",
        Reason.NO_PROCESS,
        (503, SERVER, "no_process"),
        details=RETRY,
        headers={"retry-after": "1"},
    ),
    Case(
        "too long at it",
        **FINE,
        grpc=("DEADLINE_EXCEEDED", Reason.DEADLINE_EXCEEDED),
        http=(504, SERVER, "timeout"),
        headers={"x-should-retry": "false"},
        setup=Setup(max_seconds=0.05),
        hangs=True,
    ),
    raised(
        "no memory",
        StepMemoryError("/secret/path"),
        "RESOURCE_EXHAUSTED",
        Reason.OUT_OF_MEMORY,
        (503, SERVER, "out_of_memory"),
    ),
    raised(
        "a bug",
        ValueError("/secret/path"),
        "INTERNAL",
        Reason.INTERNAL,
        (500, SERVER, "internal"),
        headers={"x-should-retry": "false"},
    ),
)
