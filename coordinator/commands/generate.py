"""expertmesh generate: one generation from a checkpoint, validated and run as a server would."""

import argparse
import json
import sys
import time
from dataclasses import replace

from coordinator.api.requests.event_join import join
from coordinator.api.requests.events import Event, EventWriter
from coordinator.api.requests.plain_delta import plain_event
from coordinator.api.validation.request import ValidRequest, resolve
from coordinator.commands.generate_arguments import GenerateArguments
from coordinator.commands.termination import stop_exits
from coordinator.config.model import DEFAULT_MAX_OUTPUT_TOKENS, ModelOptions
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_checkpoint import open_checkpoint
from coordinator.server.open_model import served_model
from coordinator.server.process import configure_process
from coordinator.server.shared_part import loading_shared
from expertmesh import replies
from expertmesh import requests as client_requests
from expertmesh.commands.options import options_of
from expertmesh.commands.shown import Shown
from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import ConfigError
from moe_model.halt import Halt


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError."""
    given = options_of(args, GenerateArguments)
    configure_process(given.engine)
    report = args.report
    checkpoint = open_checkpoint(given.checkpoint, report)
    facts = read_facts(checkpoint, given.engine)
    texts = ModelTexts.open(facts)
    valid, writer = _prepare(given, facts, texts)
    with (
        stop_exits() as halt,
        loading_shared(checkpoint, given.engine, halt) as part,
        open_experts(checkpoint, given.engine, given.workers, phases=report, halt=halt) as experts,
    ):
        report("engine")
        preparer, on_bytes = texts.preparer(), report.progress
        engine = build_engine(
            checkpoint, given.engine, experts, preparer=preparer, on_bytes=on_bytes, part=part
        )
        report.done()
        events = _generate(engine, valid, writer, halt, show=not given.json)
    if given.json:
        completion = replies.completion(join(events))
        print(json.dumps(completion.to_dict()))
    return 0


def _prepare(
    given: GenerateArguments, facts: ModelFacts, texts: ModelTexts
) -> tuple[ValidRequest, EventWriter[Event]]:
    """Checks the request before anything is loaded.

    `--max-tokens` is a limit here and not a promise: under STOP the end of the context may come first.
    """
    options = given.generation.given()
    most = options.pop("max_tokens", None)
    if most is not None and most < 1:
        raise ConfigError(f"--max-tokens: {most} is less than 1")
    limit = DEFAULT_MAX_OUTPUT_TOKENS if most is None else most
    served = served_model(facts, ModelOptions(max_output_tokens=limit), texts)
    message = client_requests.generate_request(given.prompt.given(), {**options, "return_token_ids": True})
    valid = resolve(message, served, "generate", time.monotonic())
    return valid, EventWriter(valid, served.tokenizer, plain_event)


def _generate(
    engine: Engine, valid: ValidRequest, writer: EventWriter[Event], halt: Halt, *, show: bool
) -> list[pb.GenerateStreamResponse]:
    """All events of the generation; text goes to the terminal as it comes. Raises the engine's error, and
    HaltedError."""
    # Loading is not part of the request: its clock starts here.
    engine.submit(replace(valid.request, arrival_time=time.monotonic()))
    events = writer.prompt()
    shown = Shown(valid.request.num_sequences)
    while engine.has_work:
        halt.check()
        for output in engine.step():
            if output.failure is not None:
                raise output.failure.error()
            for event in writer.events(output):
                events.append(event)
                if show:
                    _show(event, shown, valid.return_text)
    return events


def _show(event: pb.GenerateStreamResponse, shown: Shown, as_text: bool) -> None:
    """A model without a tokenizer has only token ids to show."""
    match event.WhichOneof("event"):
        case "delta":
            text = event.delta.text if as_text else "".join(f"{i} " for i in event.delta.token_ids)
            shown.show(event.delta.index, text)
        case "finished":
            shown.end(event.finished.index)
        case "summary":
            print(_summary(event.summary), file=sys.stderr)


def _summary(summary: pb.StreamSummary) -> str:
    num_tokens = summary.usage.completion_tokens
    total = summary.timings.total_time.ToTimedelta().total_seconds()
    until_first = summary.timings.time_to_first_token.ToTimedelta().total_seconds()
    return f"{num_tokens} tokens, {num_tokens / total:.1f} tokens/s, first token after {until_first:.3f} s"
