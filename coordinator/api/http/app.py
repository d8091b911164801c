"""The OpenAI-compatible HTTP API: routes, ids, keys and errors. What the routes do is in http_*.py."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coordinator.api.http import chat as http_chat
from coordinator.api.http import completions as http_completions
from coordinator.api.http.answer import Asked, Shape, StreamOptions, warned
from coordinator.api.http.cors import cors
from coordinator.api.http.errors import error_response, plain_error
from coordinator.api.http.field_check import WARNINGS_HEADER, FieldCheck, warnings_header
from coordinator.api.http.fields import Route as Fields
from coordinator.api.http.json import Body, BodyReader, integers, invalid
from coordinator.api.http.parameters import NO_NAMES, Names
from coordinator.api.http.paths import nothing_there
from coordinator.api.http.respond import EventStream, Job, respond
from coordinator.api.http.shapes import token_text, tokenized
from coordinator.api.http.tools import fill_tools
from coordinator.api.requests.responses import Caller, Facts, Front, off_loop
from coordinator.api.security.auth import Authenticator, single
from coordinator.api.shared import tokenization
from coordinator.api.shared.errors import ApiError, Reason, translate
from coordinator.api.shared.request_ids import given_ids, id_headers
from coordinator.api.shared.request_log import log_fields
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.violations import Violations
from expertmesh.v1 import generation_pb2 as pb

logger = logging.getLogger(__name__)

Handler = Callable[[Request, "_Call"], Awaitable[Response]]
# Path -> method and handler.
_Routes = dict[str, tuple[str, Handler]]


@dataclass(frozen=True, slots=True)
class HttpServices:
    """What the routes need. `readiness` gives reasons against, `metrics` for an Accept header a text and its
    content type; `observed` is told path, method, status and seconds of every request; `strict_fields`
    refuses fields that this server does not know."""

    front: Front
    authenticator: Authenticator
    readiness: Callable[[], Sequence[str]]
    metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    observed: Callable[[str, str, int, float], None]
    write_stall_timeout: float = 60.0
    strict_fields: bool = False
    allowed_origins: Sequence[str] = ()


@dataclass(slots=True)
class _Call:
    """One request: its caller, and its ids."""

    request_id: str
    given_ids: dict[str, str]
    key_id: str = ""
    names: Names = NO_NAMES
    # It is told to the observer, even where it ends before there is a generation.
    is_observed: bool = False
    # What of the request was passed over.
    warnings: list[str] = field(default_factory=list)


class HttpApi:
    """The routes' handlers."""

    def __init__(self, services: HttpServices) -> None:
        self._services = services
        self._fields = FieldCheck(services.strict_fields)
        self._bodies = BodyReader()
        self._created = int(time.time())

    def app(self) -> Starlette:
        """All routes."""
        closed_routes: _Routes = {
            "/v1/completions": ("POST", self._completions),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/models": ("GET", self._models),
            "/v1/models/{model:path}": ("GET", self._model),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/tokenizer_info": ("GET", self._tokenizer_info),
            "/metrics": ("GET", self._metrics),
            "/version": ("GET", self._version),
            "/load": ("GET", self._load),
        }
        return self._app(closed_routes, cors(self._services.allowed_origins))

    def metrics_app(self) -> Starlette:
        """Metrics and health, for a port of their own."""
        return self._app({"/metrics": ("GET", self._metrics)})

    def _app(self, closed_routes: _Routes, middleware: Sequence[Middleware] = ()) -> Starlette:
        """The routes that need a key, beside those that never do."""
        open_routes: _Routes = {
            "/health": ("GET", self._health),
            "/readyz": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/livez": ("GET", self._alive),
        }
        routes = [
            Route(path, self._endpoint(path, handler, needs_key=routes is closed_routes), methods=[method])
            for routes in (open_routes, closed_routes)
            for path, (method, handler) in routes.items()
        ]
        handlers = {HTTPException: self._not_found}
        app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
        # A redirect would tell which paths there are, before any key is asked for.
        app.router.redirect_slashes = False
        return app

    def _endpoint(
        self, path: str, handler: Handler, *, needs_key: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler behind the key check, whose every exception is an error response."""

        async def endpoint(request: Request) -> Response:
            started = time.monotonic()
            call = _call_of(request)

            def observed(status: int) -> None:
                self._services.observed(path, request.method, status, time.monotonic() - started)

            try:
                if needs_key:
                    call.key_id = self._identify(request)
                    call.warnings += self._fields.query(request.query_params if path != "/metrics" else ())
                response = await handler(request, call)
            except Exception as error:  # noqa: BLE001 - the top of a request
                response = self._failed(error, path, request, call)
            response.headers.update(id_headers(call.request_id, call.given_ids))
            if call.warnings:
                response.headers[WARNINGS_HEADER] = warnings_header(call.warnings)
            if isinstance(response, EventStream):
                response.on_end = observed
            else:
                observed(response.status_code)
            return response

        return endpoint

    def _failed(self, error: Exception, path: str, request: Request, call: _Call) -> Response:
        """What ends before there is a generation, and is logged here."""
        found = translate(error, call.request_id)
        if found.reason is Reason.INTERNAL:
            logger.error("request %s: internal error", call.request_id, exc_info=error)
        if call.is_observed:
            caller = Caller(
                call.request_id, _peer(request), call.key_id, transport="http", given_ids=call.given_ids
            )
            self._services.front.observer.finished(caller, Facts(), found, cancelled=False)
        else:
            fields = {
                "id": call.request_id,
                **call.given_ids,
                "peer": _peer(request),
                "key": call.key_id,
                "code": found.code.value,
                "reason": found.reason.value,
            }
            log_fields(logger, path, fields)
        return error_response(found, call.names)

    def _identify(self, request: Request) -> str:
        authorization = single(request.headers.getlist("authorization"))
        return self._services.authenticator.check(authorization, _peer(request)).key_id

    async def _not_found(self, request: Request, error: Exception) -> Response:
        """Also behind the key: without one a caller does not learn whether a path exists."""
        assert isinstance(error, HTTPException)
        call = _call_of(request)
        try:
            self._identify(request)
            response = _nothing_there(error, request)
        except ApiError as refused:
            response = self._failed(refused, "unknown", request, call)
        response.headers.update(id_headers(call.request_id, call.given_ids))
        self._services.observed("unknown", "unknown", response.status_code, 0.0)
        return response

    async def _completions(self, request: Request, call: _Call) -> Response:
        body = await self._asked_for(request, call, Fields.COMPLETIONS)
        model = self._model_named(body)
        asked = http_completions.parse(body, model, _streaming(body))
        return await self._respond(asked, http_completions.CompletionShape(asked.wants), body, request, call)

    async def _chat(self, request: Request, call: _Call) -> Response:
        call.names = Names(is_chat=True)
        body = await self._asked_for(request, call, Fields.CHAT)
        self._model_named(body)
        asked = http_chat.parse(body, _streaming(body))
        return await self._respond(asked, http_chat.ChatShape(asked.wants), body, request, call)

    async def _asked_for(self, request: Request, call: _Call, route: Fields) -> Body:
        """The body of a request for a generation; a full server does not read it."""
        call.is_observed = True
        self._services.front.gate.admission.check_room()
        return await self._body(request, call, route)

    async def _body(self, request: Request, call: _Call, route: Fields) -> Body:
        data = await self._bodies.read_object(request)
        call.warnings += self._fields.body(data, route)
        return Body(data)

    async def _respond(
        self, asked: Asked, shape: Shape, body: Body, request: Request, call: _Call
    ) -> Response:
        services = self._services
        call.request_id = _request_id(body) or call.request_id
        caller = Caller(
            request_id=call.request_id,
            peer=_peer(request),
            key_id=call.key_id,
            transport="http",
            streams=asked.streaming.stream,
            trace_parent={k: v for k, v in request.headers.items() if k in ("traceparent", "tracestate")},
            given_ids=call.given_ids,
        )
        model = self._served().name
        stall = services.write_stall_timeout
        job = Job(asked, shape, caller, services.front, model, stall, tuple(call.warnings))
        return await respond(job, request)

    def _served(self) -> ServedModel:
        """Raises NOT_READY, DRAINING."""
        with self._services.front.gate.call() as backend:
            return backend.model

    def _model_named(self, body: Body) -> ServedModel:
        served = self._served()
        served.check_name(body.text("model") or "")
        return served

    async def _models(self, request: Request, call: _Call) -> Response:
        served = self._served()
        names = (served.name, *served.aliases)
        return _json({"object": "list", "data": [self._model_object(served, name) for name in names]})

    async def _model(self, request: Request, call: _Call) -> Response:
        served, name = self._served(), str(request.path_params["model"])
        if not name:
            raise ApiError.of(Reason.MODEL_NOT_FOUND, "model: no name is given")
        served.check_name(name)
        return _json(self._model_object(served, name))

    def _model_object(self, served: ServedModel, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "expertmesh",
            "root": served.name,
            "max_model_len": served.max_context,
        }

    async def _tokenize(self, request: Request, call: _Call) -> Response:
        body = await self._body(request, call, Fields.TOKENIZE)
        served = self._model_named(body)
        message = pb.TokenizeRequest(return_token_bytes=True)
        messages, prompt = body.array("messages"), body.text("prompt")
        if (messages is None) == (prompt is None):
            raise invalid("prompt", "is required" if prompt is None else "is given beside messages")
        if messages is None:
            http_chat.refuse_template(body)
            message.text = prompt or ""
        else:
            http_chat.fill_chat(messages, message.chat)
            http_chat.fill_template(body, message.chat)
            fill_tools(body, message.chat)
        add_special = body.boolean("add_special_tokens")
        if add_special is not None:
            message.add_special_tokens = add_special
        content = await off_loop(_tokenized, message, served, warned(call.warnings))
        return Response(content, media_type="application/json")

    async def _detokenize(self, request: Request, call: _Call) -> Response:
        body = await self._body(request, call, Fields.DETOKENIZE)
        served = self._model_named(body)
        tokens = body.array("tokens")
        if tokens is None:
            raise invalid("tokens", "is required")
        message = pb.DetokenizeRequest(
            token_ids=integers(tokens, "tokens"),
            skip_special_tokens=bool(body.boolean("skip_special_tokens")),
        )
        found = await off_loop(tokenization.detokenize, message, served)
        return _json({"prompt": found.text, **warned(call.warnings)})

    async def _tokenizer_info(self, request: Request, call: _Call) -> Response:
        served = self._served()
        tokenizer, generation = served.require_tokenizer("tokenizer"), served.generation_defaults
        eos = generation.eos_token_ids[0] if generation.eos_token_ids else None
        return _json(
            {
                "tokenizer_class": tokenizer.class_name,
                "vocab_size": served.config.vocab_size,
                "model_max_length": served.max_context,
                "bos_token": _special(tokenizer.token_bytes, generation.bos_token_id),
                "eos_token": _special(tokenizer.token_bytes, eos),
                "pad_token": _special(tokenizer.token_bytes, generation.pad_token_id),
                "chat_template": None if served.chat_template is None else served.chat_template.source,
            }
        )

    async def _metrics(self, request: Request, call: _Call) -> Response:
        text, content_type = await self._services.metrics(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def _version(self, request: Request, call: _Call) -> Response:
        return _json({"version": metadata.version("expertmesh")})

    async def _load(self, request: Request, call: _Call) -> Response:
        """Under vLLM's name, for balancers."""
        return _json({"server_load": self._services.front.gate.admission.num_sequences})

    async def _health(self, request: Request, call: _Call) -> Response:
        reasons = list(self._services.readiness())
        if not reasons:
            return _json({})
        return _json({"status": "not ready", "reasons": reasons}, 503)

    async def _alive(self, request: Request, call: _Call) -> Response:
        return _json({})


def _nothing_there(error: HTTPException, request: Request) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        method = "GET" if "GET" in headers.get("Allow", "") else "POST"
        response = plain_error(405, f"this method is not allowed here; use {method}", "method_not_allowed")
    else:
        paths = [route.path for route in request.app.routes]
        response = plain_error(404, nothing_there(request.scope["path"], paths), "not_found")
    response.headers.update(headers)
    return response


def _streaming(body: Body) -> StreamOptions:
    options = body.mapping("stream_options")
    stream = bool(body.boolean("stream"))
    if options is None:
        return StreamOptions(stream)
    if not stream:
        raise invalid("stream_options", "needs stream to be true")
    inner = Body(options, "stream_options.")
    found = StreamOptions(
        stream, bool(inner.boolean("include_usage")), bool(inner.boolean("continuous_usage_stats"))
    )
    # OpenAI pads its events against listeners; there is nothing to pad here.
    inner.boolean("include_obfuscation")
    inner.refuse_others()
    return found


def _call_of(request: Request) -> _Call:
    return _Call(str(uuid4()), given_ids(request.headers.items()))


def _request_id(body: Body) -> str:
    """The caller's own id for the request. Raises ApiError for one that is none."""
    given = body.text("request_id") or ""
    violations = Violations()
    violations.check_request_id("request_id", given)
    violations.raise_if_any()
    return given


def _peer(request: Request) -> str:
    return "" if request.client is None else f"{request.client.host}:{request.client.port}"


def _tokenized(message: pb.TokenizeRequest, served: ServedModel, more: Mapping[str, object]) -> bytes:
    return tokenized(tokenization.tokenize(message, served), more)


def _special(token_bytes: Callable[[int], bytes], token_id: int | None) -> str | None:
    return None if token_id is None else token_text(token_bytes(token_id))


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")
