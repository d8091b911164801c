"""The generator script's comparison, and that what it made is what we load."""

import importlib.util
from pathlib import Path
from types import ModuleType

import grpc
import pytest

from expertmesh.v1 import control_pb2, control_pb2_grpc, generation_pb2, generation_pb2_grpc

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate_protos.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protos", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stale_files_are_those_that_differ_lack_or_are_left_over(script: ModuleType) -> None:
    fresh = {"same": b"1", "changed": b"2", "new": b"3"}
    committed = {"same": b"1", "changed": b"x", "left over": b"4"}
    assert script.stale_files(fresh, committed) == ["changed", "left over", "new"]
    assert script.stale_files(fresh, fresh) == []


def test_three_files_are_committed_for_each_proto(script: ModuleType) -> None:
    generated = script.generated_files(script.CODE)
    protos = [path.relative_to(script.SOURCES) for path in script.SOURCES.rglob("*.proto")]
    expected = {
        str(path.with_name(path.stem + end))
        for path in protos
        for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    }
    assert set(generated) == expected


def test_the_services_are_generated() -> None:
    channel = grpc.insecure_channel("127.0.0.1:1")
    for messages, stubs, name in (
        (generation_pb2, generation_pb2_grpc, "GenerationService"),
        (control_pb2, control_pb2_grpc, "ControlService"),
    ):
        stub = getattr(stubs, f"{name}Stub")(channel)
        service = messages.DESCRIPTOR.services_by_name[name]
        assert service.full_name == f"expertmesh.v1.{name}"
        assert all(hasattr(stub, method.name) for method in service.methods)
    channel.close()
