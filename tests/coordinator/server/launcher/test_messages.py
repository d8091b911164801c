"""What launcher and processes say arrives as it was said, and nothing else does."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config.key_limits import Limits
from coordinator.config.security import SecurityConfig, TlsConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses, CallsConfig, ProcessesConfig
from coordinator.config.workers import DataTls, WorkersConfig
from coordinator.server.launcher import messages
from coordinator.server.launcher.messages import ControlError, Message, decode, encode

CONFIG = ServeConfig(
    checkpoint="folder with spaces/ü",
    addresses=Addresses("[::1]:0", http=None),
    processes=ProcessesConfig(num_fronts=3),
    calls=CallsConfig(allowed_origins=("https://a.example", "https://b.example")),
    security=SecurityConfig(
        api_key_file=Path("keys"), key_limits=Limits(rps=0.5), tls=TlsConfig(Path("cert"), Path("key"))
    ),
    workers=WorkersConfig(num_workers=2, data_tls=DataTls(Path("a"), Path("b"), Path("c"))),
    api_key="a\nkey",
)
SAID: list[Message] = [
    messages.Begin(CONFIG, Path("/folder"), "instance", 2, is_again=True),
    messages.Begun(),
    messages.UseRay("192.0.2.1:6379", {"RAY_AUTH_MODE": "token"}),
    messages.ModelKnown("/models/one"),
    messages.EngineReady("cpu", 2, 1, 1 << 40),
    messages.FrontReady(512),
    messages.RayReady("192.0.2.1:6379", {}),
    messages.Phase("2 workers with their experts"),
    messages.Progress(1, 1 << 40),
    messages.Halt(),
    messages.Drain(0.5, 30.0),
    messages.Drained(),
    messages.Stop(),
    messages.Failed("two\nlines"),
]


def test_there_is_one_of_each_kind() -> None:
    assert {type(said) for said in SAID} == set(Message.__args__)


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_what_is_said_arrives_on_one_line(said: Message) -> None:
    line = encode(said)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == said


def test_a_configuration_arrives_whole() -> None:
    """Each part of it differs from its default, so that a part which was left out would show."""
    (begin,) = (said for said in SAID if isinstance(said, messages.Begin))
    arrived = decode(encode(begin))
    assert isinstance(arrived, messages.Begin)
    assert arrived.config == CONFIG != replace(CONFIG, api_key=None)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"{}\n", b"[]\n", b'["Stop"]\n', b'["None",{}]\n', b'["__class__",{}]\n', b"\xff\n"),
        *(
            b'["Drain",{}]\n',
            b'["Drain",{"grace":"x","timeout":1}]\n',
            b'["Progress",{"done":1.5,"total":2}]\n',
        ),
        encode(SAID[0])[:100] + b"\n",
    ],
)
def test_what_is_no_message_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(ControlError, match="a control line that is none"):
        decode(line)
