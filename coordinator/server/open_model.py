"""What the fronts know about a model. Part of the composition root, with main.py."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.config.model import ModelOptions, ToolParser
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.server.model_texts import ModelTexts
from coordinator.tools.forms import FORMS
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.files.whole_file import read_file
from moe_model.text.tokenizer import Tokenizer
from moe_model.text.tokenizer_settings import CHAT_TEMPLATE, MAX_CHAT_TEMPLATE_BYTES


async def open_model(
    facts: ModelFacts, options: ModelOptions, texts: ModelTexts, stack: AsyncExitStack
) -> ServedModel:
    """The process of its chat template ends with the stack."""
    model = await asyncio.to_thread(served_model, facts, options, texts)
    if model.chat_template is not None:
        stack.callback(model.chat_template.close)
        await asyncio.to_thread(model.chat_template.try_out)
    return model


def served_model(facts: ModelFacts, options: ModelOptions, texts: ModelTexts) -> ServedModel:
    """What the fronts know about the model before its weights are loaded: what its cache holds is what it
    would with plenty of memory. Raises CheckpointError, ConfigError."""
    tokenizer = texts.tokenizer
    return ServedModel(
        name=options.name or facts.name,
        config=facts.config,
        generation_defaults=facts.generation,
        tokenizer=tokenizer,
        unread_tokenizer=texts.unread,
        architecture=facts.architecture,
        max_output_tokens=options.max_output_tokens,
        kv_capacity_tokens=facts.kv_capacity_tokens,
        aliases=options.aliases,
        default_overflow=options.context_overflow,
        chat_template=_chat_template(facts, options, tokenizer),
        constraints=texts.constraints,
        max_num_sequences=options.max_num_sequences,
        allow_routed_experts=options.allow_routed_experts,
        generation_config=options.generation_config,
    )


def _chat_template(
    facts: ModelFacts, options: ModelOptions, tokenizer: Tokenizer | None
) -> ChatTemplate | None:
    """The file that was named, else the checkpoint's own."""
    settings = facts.settings
    if options.chat_template is not None:
        data = read_file(options.chat_template, max_size=MAX_CHAT_TEMPLATE_BYTES, follow_links=True)
        source: str | None = data.decode(errors="replace")
        name = options.chat_template.name
        for_tools = None
    else:
        source, for_tools = settings.default_template, settings.tool_template
        name = CHAT_TEMPLATE
    if source is None or tokenizer is None:
        return None
    special = settings.special_tokens or _ends_of_texts(facts.generation, tokenizer)
    form = None if options.tool_parser is ToolParser.AUTO else FORMS[options.tool_parser]
    return ChatTemplate(source, for_tools=for_tools, special_tokens=special, name=name, call_form=form)


def _ends_of_texts(generation: GenerationDefaults, tokenizer: Tokenizer) -> Mapping[str, str]:
    """BOS and EOS, where nothing names special tokens by their texts."""
    ids = {"bos_token": generation.bos_token_id, "eos_token": next(iter(generation.eos_token_ids), None)}
    given = [(name, token_id) for name, token_id in ids.items() if token_id is not None]
    return {name: tokenizer.token_bytes(token_id).decode(errors="replace") for name, token_id in given}
