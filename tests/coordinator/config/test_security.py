"""The security arguments, as a frozen config."""

from pathlib import Path

import pytest

from coordinator.config.key_limits import Limits
from coordinator.config.security import SecurityConfig, TlsConfig
from expertmesh.commands.options import add_options, options_of
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError

TLS = ("--tls-cert", "c", "--tls-key", "k")


def parse(*argv: str) -> SecurityConfig:
    parser = OneLineParser()
    add_options(parser, SecurityConfig)
    return options_of(parser.parse_args(argv), SecurityConfig)


def test_defaults_are_those_of_the_config() -> None:
    assert parse() == SecurityConfig()


def test_everything_given() -> None:
    others = ("--insecure", "--no-reflection", "--max-request-seconds", "60", "--key-limits", "rps=2")
    assert parse("--api-key-file", "f", *TLS, "--tls-client-ca", "a", *others) == SecurityConfig(
        api_key_file=Path("f"),
        key_limits=Limits(rps=2),
        tls=TlsConfig(Path("c"), Path("k"), Path("a")),
        insecure=True,
        reflection=False,
        max_request_seconds=60,
    )
    assert parse("--reflection").reflection is True


@pytest.mark.parametrize(
    "argv", [TLS[:2], TLS[2:], ("--tls-client-ca", "a"), (*TLS[:2], "--tls-client-ca", "a")]
)
def test_files_that_belong_together(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        parse(*argv)


@pytest.mark.parametrize(
    "argv", [("--key-limits", "x"), ("--max-request-seconds", "0"), ("--max-request-seconds", "x")]
)
def test_usage(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*argv)
