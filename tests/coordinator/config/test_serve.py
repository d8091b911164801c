"""The configuration of a server, as its command line fills it."""

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.config.serve import ServeConfig
from expertmesh.commands.options import Declared, add_options, declared, options_of
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError

NUMBERS = [each for each in declared(ServeConfig) if each.type in (int, float)]


def parse(*arguments: str) -> ServeConfig:
    parser = OneLineParser()
    add_options(parser, ServeConfig)
    return options_of(parser.parse_args(["checkpoint", *arguments]), ServeConfig)


def test_what_is_not_given_is_the_configuration_s_own_default() -> None:
    assert parse() == ServeConfig("checkpoint")


@pytest.mark.parametrize("each", NUMBERS, ids=lambda each: each.option.flag)
def test_every_number_has_its_range(each: Declared) -> None:
    """A function that checks it and has the name of a field would be hidden by the field in its class."""
    assert each.option.parse is not None or each.choices


@pytest.mark.parametrize("each", NUMBERS, ids=lambda each: each.option.flag)
def test_no_number_may_be_negative(each: Declared, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(f"{each.option.flag}=-1")
    assert each.option.flag in capsys.readouterr().err


def test_addresses_may_be_off_but_for_grpc() -> None:
    found = parse("--http-address", "off", "--control-address", "off").addresses
    assert (found.http, found.control, found.metrics) == (None, None, None)
    with pytest.raises(ConfigError, match="--grpc-address: cannot be off"):
        parse("--grpc-address", "off")


def test_what_means_something_else_than_its_text_is_converted() -> None:
    found = parse("--kv-cache-mib", "3", "--micro-batches", "2", "--allowed-origins", "https://A.example,*")
    assert (found.engine.kv_cache_bytes, found.engine.micro_batches) == (3 << 20, 2)
    assert found.calls.allowed_origins == ("https://a.example", "*")
    assert parse("--micro-batches", "auto").engine.micro_batches is None


def test_drafts_are_ngrams_of_so_many_tokens_or_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse().engine.speculate is None
    assert parse("--speculate", "off").engine.speculate is None
    assert parse("--speculate", "ngram:4").engine.speculate == 4
    for text in ("4", "ngram", "ngram:0", "ngram:33", "ngram:x", "draft:4"):
        with pytest.raises(SystemExit):
            parse("--speculate", text)
        assert "--speculate" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="speculate: 33 is not in"):
        EngineConfig(speculate=33)


def test_one_word_switches_off_both_checks_of_strangers() -> None:
    found = parse("--insecure")
    assert (found.security.insecure, found.workers.insecure) == (True, True)
