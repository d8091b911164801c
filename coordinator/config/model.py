"""How a checkpoint is presented to clients."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from coordinator.engine.options import ContextOverflow
from expertmesh.commands.options import Option
from expertmesh.commands.values import positive, whole_number

DEFAULT_MAX_OUTPUT_TOKENS = 4096
MAX_NUM_SEQUENCES = 64


class ToolParser(StrEnum):
    """Forms of calls, by their names in coordinator/tools/forms.py."""

    AUTO = "auto"
    HERMES = "hermes"
    QWEN3_CODER = "qwen3_coder"
    GLM = "glm"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"
    DEEPSEEK_V3 = "deepseek_v3"
    DEEPSEEK_V31 = "deepseek_v31"
    GRANITE = "granite"
    JSON = "json"


class GenerationConfig(StrEnum):
    """Where the defaults of sampling come from: the checkpoint, or nowhere."""

    MODEL = "model"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a checkpoint is served. `chat_template` is a file that takes the place of the checkpoint's own."""

    name: Annotated[
        str | None,
        Option("--model-name", metavar="NAME", help="name clients know (default: the folder's, as given)"),
    ] = None
    aliases: Annotated[
        tuple[str, ...], Option("--model-alias", metavar="NAME", help="another name; may be repeated")
    ] = ()
    max_output_tokens: Annotated[
        int,
        Option(
            "--max-output-tokens",
            parse=positive,
            metavar="N",
            help="most tokens one sequence may have (%(default)s)",
        ),
    ] = DEFAULT_MAX_OUTPUT_TOKENS
    max_num_sequences: Annotated[
        int,
        Option(
            "--max-num-sequences",
            parse=whole_number(1, MAX_NUM_SEQUENCES),
            metavar="N",
            help="most sequences one request may ask for (%(default)s)",
        ),
    ] = 8
    context_overflow: Annotated[
        ContextOverflow,
        Option(
            "--context-overflow",
            metavar="stop|slide",
            help="for requests that do not say: stop at the end of the context, or slide (%(default)s)",
        ),
    ] = ContextOverflow.STOP
    generation_config: Annotated[
        GenerationConfig,
        Option(
            "--generation-config",
            metavar="model|none",
            help="defaults of sampling: the checkpoint's, or neutral ones (%(default)s)",
        ),
    ] = GenerationConfig.MODEL
    chat_template: Annotated[
        Path | None,
        Option("--chat-template", metavar="FILE", help="Jinja template (default: the checkpoint's own)"),
    ] = None
    tool_parser: Annotated[
        ToolParser,
        Option(
            "--tool-parser",
            metavar="NAME",
            help="form in which the model calls tools (%(default)s: the one that its chat template shows)",
        ),
    ] = ToolParser.AUTO
    allow_routed_experts: Annotated[
        bool, Option("--routed-experts", help="let requests ask which experts their tokens were routed to")
    ] = False
