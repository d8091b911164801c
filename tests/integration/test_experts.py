"""`expertmesh experts` and the control service, over a real server: its experts in the coordinator, or in
workers."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from safetensors.torch import load_file, save_file

from expertmesh import Client, ClientError, ControlClient, Delta, GenerateOptions
from moe_model import AssembledModel
from tests.coordinator.exchanges import module_of, rewritten
from tests.integration.processes import DEMO_CHECKPOINT, Server, assert_one_line_error, run_command

pytestmark = pytest.mark.timeout(240)

PROMPT = [2, 61, 62, 63, 64]
FILE = module_of(DEMO_CHECKPOINT, 0, 3)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """With as many workers as its parameter says, or none."""
    options = (f"--workers={getattr(request, 'param', 0)}", "--routed-experts")
    with Server(str(DEMO_CHECKPOINT), *options, log=tmp_path / "log") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def control(server: Server) -> Iterator[ControlClient]:
    with ControlClient(server.address_of("control")) as control:
        yield control


def greedy(model: AssembledModel, num_tokens: int) -> tuple[int, ...]:
    return tuple(model.generate(torch.tensor(PROMPT), num_tokens, temperature=0)[0, len(PROMPT) :].tolist())


@pytest.mark.parametrize("server", [0, 2], indirect=True)
def test_a_stream_ends_as_it_began_and_the_next_one_has_the_new_expert(
    server: Server, control: ControlClient, tmp_path: Path
) -> None:
    old = AssembledModel.from_checkpoint(DEMO_CHECKPOINT)
    new = AssembledModel.from_checkpoint(
        rewritten(DEMO_CHECKPOINT, tmp_path / "new", {(2, 1): Path(FILE), (0, 0): Path(FILE)})
    )
    long: GenerateOptions = {
        "max_tokens": 200,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    short: GenerateOptions = {**long, "max_tokens": 40}
    with Client(server.address) as client:
        stream = client.stream(PROMPT, **long)
        events = [next(stream), next(stream)]
        control.replace_expert(2, 1, FILE)
        assert any(each.retiring for each in control.experts()), "the stream still runs"
        control.replace_expert(0, 0, FILE)
        after = client.generate(PROMPT, **short)
        events += stream
        again = client.generate(PROMPT, **short)
    tokens = tuple(i for event in events if isinstance(event, Delta) for i in event.token_ids)
    assert tokens == greedy(old, 200)
    assert after.token_ids == again.token_ids == greedy(new, 40)
    assert after.token_ids != tokens[:40]


def test_the_commands_say_what_was_done(server: Server, tmp_path: Path) -> None:
    address = server.address_of("control")
    row = tmp_path / "row.safetensors"
    save_file({"router.weight": torch.zeros_like(load_file(FILE)["norm.weight"])}, row)
    sha256 = hashlib.sha256(Path(FILE).read_bytes()).hexdigest()
    for arguments, said in (
        (
            ("replace", address, "1", "2", FILE, "--sha256", sha256),
            "replaced expert 2 of layer 1, version 1, in ",
        ),
        (("add", address, "1", FILE, str(row)), "added expert 5 of layer 1, version 0, in "),
        (("remove", address, "1", "0"), "removed expert 0 of layer 1, version 0, in "),
    ):
        result = run_command("experts", *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(said)
    lines = run_command("experts", "list", address).stdout.splitlines()
    assert lines[0].split() == ["layer", "expert", "version", "workers", "sha256"]
    layer = [line.split()[:4] for line in lines if line.startswith("    1 ")]
    assert layer == [["1", e, v, "-"] for e, v in zip("12345", "01000", strict=True)]
    assert lines[7].endswith(sha256)
    with urlopen(f"http://{server.address_of('http')}/metrics") as response:
        metrics = response.read().decode()
    assert re.findall(r'expert_exchanges_total\{kind="(\w+)".* (\d)', metrics) == [
        ("replace", "1"),
        ("add", "1"),
        ("remove", "1"),
    ]
    assert re.findall(r'expert_version\{expert="(\d)",layer="1".* (\d)', metrics) == [("2", "1"), ("5", "0")]
    assert "experts: remove layer=1 expert=0 version=0" in server.log


def test_what_is_refused_is_one_line(server: Server, control: ControlClient) -> None:
    address = server.address_of("control")
    before = control.experts()
    result = run_command("experts", "replace", address, "1", "2", "README.md")
    assert_one_line_error(result, "INVALID_ARGUMENT: path: ", "README.md: is not a safetensors file")
    for expert in (0, 1, 2):
        control.remove_expert(1, expert)
    with pytest.raises(ClientError) as refused:
        control.remove_expert(1, 3)
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "EXPERTS_NOT_CHANGED")
    assert "layer 1 would have 1 experts" in str(refused.value)
    for change, field in (
        (lambda: control.replace_expert(1, 0, FILE), "expert_id"),
        (lambda: control.replace_expert(9, 0, FILE), "layer"),
        (lambda: control.replace_expert(0, 0, FILE, sha256=""), "sha256"),
        (lambda: control.add_expert(0, FILE, "nowhere\n"), "router_path"),
    ):
        with pytest.raises(ClientError) as refused:
            change()
        assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", field)
    assert len(control.experts()) == len(before) - 3
    assert "Traceback" not in server.log


def test_requests_select_among_what_there_is_now(server: Server, control: ControlClient) -> None:
    control.remove_expert(1, 0)
    with Client(server.address) as client:
        with pytest.raises(ClientError, match="leaves no expert in layer 1") as refused:
            client.generate(PROMPT, max_tokens=1, allowed_experts=[0])
        assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", "experts")
        completion = client.generate(PROMPT, max_tokens=4, allowed_experts=[0, 3], return_routed_experts=True)
        for layer in range(4):
            control.remove_expert(layer, 4)
        with pytest.raises(ClientError, match=r"allowed_experts\[1\]: 4 is not in \[0, 4\)"):
            client.generate(PROMPT, max_tokens=1, allowed_experts=[3, 4])
    assert completion.usage.completion_tokens == 4
