"""expertmesh client: streams one generation from a server to the terminal."""

import argparse
import json
import sys
import time
from contextlib import closing

from expertmesh.client import Client
from expertmesh.commands.client_arguments import ClientArguments
from expertmesh.commands.connection import connection
from expertmesh.commands.options import options_of
from expertmesh.commands.shown import Shown
from expertmesh.errors import ClientError
from expertmesh.results import Delta, Finished, GenerateOptions, Prompt, Summary


def run(args: argparse.Namespace) -> int:
    """Raises ClientError."""
    given = options_of(args, ClientArguments)
    prompt, options = given.prompt.given(), given.generation.given()
    if given.model is not None:
        options["model"] = given.model
    with Client(given.address, timeout=given.timeout, connection=connection(given.connection)) as client:
        if given.json:
            options["return_token_ids"] = True
            print(json.dumps(client.generate(prompt, **options).to_dict()))
        else:
            _print_stream(client, prompt, options)
    return 0


def _print_stream(client: Client, prompt: Prompt, options: GenerateOptions) -> None:
    """Text to stdout as it comes, then one line about it to stderr. An error ends the line of text first."""
    started = time.monotonic()
    first_token: float | None = None
    finish_reason = ""
    shown = Shown(options.get("num_sequences", 1))
    with closing(client.stream(prompt, **options)) as events:
        try:
            for event in events:
                match event:
                    case Delta(text=text, index=index):
                        first_token = first_token or time.monotonic()
                        shown.show(index, text)
                    case Finished(finish_reason=finish_reason, index=index):
                        shown.end(index)
                    case Summary(usage=usage):
                        until_first = (first_token or time.monotonic()) - started
                        total = time.monotonic() - started
                        print(
                            _summary(usage.completion_tokens, until_first, total, finish_reason),
                            file=sys.stderr,
                        )
        except (ClientError, KeyboardInterrupt):
            if first_token is not None:
                print(flush=True)
            raise


def _summary(num_tokens: int, until_first: float, total: float, finish_reason: str) -> str:
    """Seconds as seen from here, the network included."""
    rate = num_tokens / total if total > 0 else 0.0
    return (
        f"{num_tokens} tokens, {rate:.1f} tokens/s, first token after {until_first:.3f} s, "
        f"finished: {finish_reason}"
    )
