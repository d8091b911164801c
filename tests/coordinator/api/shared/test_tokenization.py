"""Tokenize, Detokenize and GetModelInfo, and models without a tokenizer."""

from dataclasses import replace
from typing import Any

import pytest

from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import (
    EOS,
    FakeEngine,
    failure_of,
    generate_request,
    last,
    running,
    served_model,
    tiny_tokenizer,
    tokens,
)

pytestmark = BOTH_ENGINES

EMOJI = "東京 🙂"


async def test_tokenize_and_detokenize() -> None:
    async with running() as service:
        response = await service.stub.Tokenize(pb.TokenizeRequest(text=EMOJI, return_token_bytes=True))
        assert response.token_ids[0] == 2
        assert b"".join(response.token_bytes[1:]).decode() == EMOJI
        assert response.max_context_length == 32
        bare = await service.stub.Tokenize(pb.TokenizeRequest(text=EMOJI, add_special_tokens=False))
        assert bare.token_ids == response.token_ids[1:]
        assert not bare.token_bytes
        back = await service.stub.Detokenize(pb.DetokenizeRequest(token_ids=response.token_ids))
        assert back.text == "<bos>" + EMOJI
        skipped = pb.DetokenizeRequest(token_ids=response.token_ids, skip_special_tokens=True)
        assert (await service.stub.Detokenize(skipped)).text == EMOJI
        assert (await service.stub.Detokenize(pb.DetokenizeRequest())).text == ""


@pytest.mark.parametrize(
    ("method", "message", "code", "field"),
    [
        ("Tokenize", pb.TokenizeRequest(), "INVALID_ARGUMENT", "input"),
        ("Tokenize", pb.TokenizeRequest(chat=pb.ChatPrompt()), "INVALID_ARGUMENT", "chat.messages"),
        ("Tokenize", pb.TokenizeRequest(text="x", model="no"), "NOT_FOUND", None),
        ("Tokenize", pb.TokenizeRequest(text="x" * ((4 << 20) + 1)), "INVALID_ARGUMENT", "text"),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1, 320]), "INVALID_ARGUMENT", "token_ids[1]"),
        ("Detokenize", pb.DetokenizeRequest(model="no"), "NOT_FOUND", None),
        ("GetModelInfo", pb.GetModelInfoRequest(model="no"), "NOT_FOUND", None),
    ],
)
async def test_refusals_of_the_other_methods(method: str, message: Any, code: str, field: str | None) -> None:
    async with running() as service:
        failed = await failure_of(getattr(service.stub, method)(message))
    assert (failed.code, failed.fields) == (code, [field] if field else [])


async def test_ids_beyond_the_tokenizers_are_the_models_all_the_same() -> None:
    """A vocabulary is often padded: such ids come in, stand for no text, and are never looked up."""
    config = replace(served_model().config, vocab_size=384)
    (word,) = tiny_tokenizer().encode("a", add_bos=False)
    engine = FakeEngine(tokens(321), tokens(word, 383), last(322))
    async with running(engine, served_model(config=config)) as service:
        by_ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[320, 383]))
        by_ids.response.return_token_ids = by_ids.response.return_prompt_token_ids = True
        by_ids.stopping.stop_sequences.append("never")
        reply = await service.stub.Generate(by_ids)
        assert list(reply.prompt.token_ids) == [320, 383]
        (output,) = reply.outputs
        assert list(output.token_ids) == [321, word, 383, 322]
        assert output.text == "a"
        back = await service.stub.Detokenize(pb.DetokenizeRequest(token_ids=[320, word, 383]))
        assert back.text == "a"
        failed = await failure_of(service.stub.Detokenize(pb.DetokenizeRequest(token_ids=[384])))
        assert (failed.code, failed.fields) == ("INVALID_ARGUMENT", ["token_ids[0]"])


async def test_a_tokenizer_in_another_form_is_named() -> None:
    model = served_model(tokenizer=None, unread_tokenizer="tiktoken.model")
    async with running(model=model) as service:
        failed = await failure_of(service.stub.Generate(generate_request()))
    assert failed.reason == "NO_TOKENIZER"
    assert (
        "this model has tiktoken.model and no tokenizer.json; use token ids, or convert it" in failed.message
    )


async def test_without_a_tokenizer() -> None:
    async with running(model=served_model(tokenizer=None)) as service:
        for call in (
            service.stub.Generate(generate_request()),
            service.stub.Tokenize(pb.TokenizeRequest(text="x")),
            service.stub.Detokenize(pb.DetokenizeRequest(token_ids=[5])),
        ):
            failed = await failure_of(call)
            assert (failed.code, failed.reason) == ("FAILED_PRECONDITION", "NO_TOKENIZER")
        by_ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]))
        by_ids.response.return_token_ids = True
        (output,) = (await service.stub.Generate(by_ids)).outputs
        assert (output.text, list(output.token_ids)) == ("", [40, 41, 42])


async def test_model_info() -> None:
    async with running() as service:
        for name in ("", "tiny", "default"):
            info = await service.stub.GetModelInfo(pb.GetModelInfoRequest(model=name))
            assert (info.model, list(info.aliases)) == ("tiny", ["default"])
    assert info.architecture == "AssembledMoEModel"
    assert (info.max_context_length, info.max_output_tokens, info.vocab_size) == (32, 40, 320)
    assert list(info.eos_token_ids) == [EOS]
    assert (info.default_sampling.temperature, info.default_sampling.top_k) == (0.8, 50)
    assert (info.default_sampling.top_p, info.default_sampling.min_p) == (0.9, 0.0)
    assert info.default_sampling.repetition_penalty == 1.0
    assert (info.num_moe_layers, info.num_experts, info.experts_per_token) == (3, 5, 2)
    assert (info.max_num_sequences, info.max_logprobs) == (8, 20)
    assert not info.has_chat_template
    assert not info.supports_routed_experts
    assert not info.supported_constraints
