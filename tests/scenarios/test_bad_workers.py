"""Scenarios A8 to A10 on real processes: weights that change, memory that runs out, files that are broken."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from expertmesh import AsyncClient
from moe_model.checkpoint.reader import Checkpoint
from tests.conftest import Measured
from tests.integration.processes import (
    DEMO_CHECKPOINT,
    PORTS,
    run_command,
    wait_gone,
)
from tests.scenarios.serving import serving
from tests.scenarios.under_load import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


def flip_bits(pid: int, data: bytes) -> int:
    """Changes every copy of `data` in a process's memory; returns how many there were."""
    num_found = 0
    regions = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for region in regions:
            if not region[1].startswith("rw") or region[-1] in ("[vvar]", "[vsyscall]"):
                continue
            start, stop = (int(part, 16) for part in region[0].split("-"))
            try:
                memory.seek(start)
                content = memory.read(stop - start)
            except (OSError, ValueError):
                continue
            place = content.find(data)
            while place >= 0:
                memory.seek(start + place)
                memory.write(bytes((content[place] ^ 0x40,)) + bytes(b ^ 0x40 for b in data[1:4]))
                num_found += 1
                place = content.find(data, place + len(data))
    return num_found


async def test_a8_changed_weights_are_found_and_their_worker_replaced(
    tmp_path: Path, measured: Measured
) -> None:
    arguments = ("--workers=2", "--replicas=2", "--canary-interval=1")
    with serving(tmp_path / "log", *arguments) as (load, operator):
        await load.learn()
        victim = operator.pid(1)
        bias = Checkpoint.open(DEMO_CHECKPOINT).read_expert(2, 3)["fc1.bias"].float()
        assert flip_bits(victim, bias.numpy().tobytes()[1 : 4 * 64]) >= 1
        started = time.perf_counter()
        await until(lambda: operator.workers()[1].losses == 1, 20)
        noticed = time.perf_counter() - started
        assert "computes something else than when it was loaded" in operator.workers()[1].last_loss
        assert not wait_gone({victim})
        await operator.until_replicated(2, 2)
        load.check(await load.run())
        measured("A8", noticed_after_s=noticed)


@contextmanager
def memory_group(pid: int, num_bytes: int) -> Iterator[Path]:
    """A control group that gives a process no more than so much on top of what it has."""
    group = MEMORY_GROUPS / f"expertmesh-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"NO MEMORY CGROUP: {error}")
    try:
        yield group
    finally:
        wait_gone({pid})
        group.rmdir()


async def long_prompt(address: str) -> None:
    async with AsyncClient(address) as client:
        await client.generate(tuple(range(1, 401)), max_tokens=1)


@pytest.mark.chaos
async def test_a9_a_worker_without_memory_is_lost_as_such(tmp_path: Path, measured: Measured) -> None:
    arguments = ("--workers=2", "--replicas=2", "--max-step-tokens=512")
    with serving(tmp_path / "log", *arguments) as (load, operator):
        await load.learn()
        victim = operator.pid(1)
        with memory_group(victim, 256 << 10) as group:
            async with load.running(num_tokens=4) as tasks:
                # Rows of a long prompt need more than it may take.
                await long_prompt(load.address)
                histories = [await task for task in tasks]
            killed = (group / "memory.oom_control").read_text().splitlines()
        assert "oom_kill 0" not in killed
        load.check(histories)
        await until(lambda: operator.workers()[1].losses == 1, 20)
        await until(lambda: "memory" in operator.workers()[1].last_loss, 20)
        await operator.until_replicated(2, 2)
        measured("A9", added_gap_s=load.added_gap(histories))


def test_a10_a_broken_checkpoint_is_named_and_nothing_starts(tmp_path: Path, measured: Measured) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(DEMO_CHECKPOINT, checkpoint)
    broken = checkpoint / "experts" / "layer_0001" / "expert_0003.safetensors"
    data = bytearray(broken.read_bytes())
    data[-5] ^= 1
    broken.write_bytes(data)
    started = time.perf_counter()
    result = run_command("serve", *PORTS, str(checkpoint), "--workers=2")
    seconds = time.perf_counter() - started
    lines = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert len(lines) == 1, result.stderr
    for part in ("worker ", "layer_0001/expert_0003.safetensors", "SHA-256"):
        assert part in lines[0]
    assert result.returncode == 1
    measured("A10", failed_after_s=seconds)
