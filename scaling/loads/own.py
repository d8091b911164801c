"""Our own client: token ids over gRPC, greedy and of exact lengths, whose answers are kept token by token.

A closed loop has so many requests at once. An open loop sends each request when it is due, however slow the
server is, and its waits count from then: what a server does not answer in time is not left out.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.load import request as greedy
from benchmarks.server_process import ROOT, environment_of
from expertmesh.v1 import generation_pb2 as pb
from scaling.cell import Load
from scaling.loads.base import LoadRun, Target, Timed
from scaling.loads.own_messages import BEGIN, Answer, Order, Report
from scaling.loads.subprocesses import Deadline, ended, first_line
from scaling.workloads.plan import workload
from scaling.workloads.request import Planned

# Beyond the load's own deadline: for a process to start, connect and write its report.
GRACE = 60.0


class OwnSender:
    """See scaling.loads.base.Sender."""

    def run(
        self,
        target: Target,
        load: Load,
        seed: int,
        folder: Path,
        on_begin: Callable[[], None],
        timeout: float,
    ) -> LoadRun:
        """Requests that `timeout` seconds do not suffice for have DEADLINE_EXCEEDED. Raises ConfigError for a
        load that cannot be, RuntimeError where its process fails."""
        plan = workload(load, target, seed)
        order = Order(
            address=target.grpc_address,
            messages=tuple(_message(each, index, target) for index, each in enumerate(plan.requests)),
            due_s=tuple(each.due_s for each in plan.requests if each.due_s is not None),
            clients=load.concurrency or 0,
            seconds=timeout,
        )
        report = _carried_out(order, folder, on_begin)
        timed = tuple(map(timed_of, report.answers, plan.requests))
        seconds = max((each.end_s for each in timed), default=0.0)
        return LoadRun(seconds, timed, report.cpu_s, report.began_s, plan.notes)


def _message(planned: Planned, index: int, target: Target) -> bytes:
    message = greedy(planned.prompt, planned.num_output)
    if target.allowed_experts:
        allowed = target.allowed_experts[index % len(target.allowed_experts)]
        message.experts.allowed_experts.extend(allowed)
    return message.SerializeToString()


def _carried_out(order: Order, folder: Path, on_begin: Callable[[], None]) -> Report:
    """By a process of its own, which has ended when this returns. Raises RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    order_file, report_file, log = (folder / f"own-{name}" for name in ("order", "report", "log"))
    order_file.write_bytes(msgspec.msgpack.encode(order))
    report_file.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "scaling.loads.own_process", str(order_file), str(report_file)]
    deadline = Deadline(order.seconds + GRACE)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=environment_of(ROOT), cwd=os.sep
        )
        with ended(process):
            if first_line(process, deadline).startswith(BEGIN):
                on_begin()
                deadline.wait(process)
    order_file.unlink()
    if process.returncode != 0 or not report_file.is_file():
        text = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"our client failed: {text[-1] if text else f'exit code {process.returncode}'}")
    report = msgspec.msgpack.decode(report_file.read_bytes(), type=Report)
    report_file.unlink()
    return report


def timed_of(answer: Answer, planned: Planned) -> Timed:
    """What came of one request. Its error is a status of gRPC, or says that a stream ended early."""
    token_s: list[float] = []
    token_ids: list[int] = []
    has_summary = False
    for at, data in answer.messages:
        event = pb.GenerateStreamResponse.FromString(data)
        token_ids += event.delta.token_ids
        token_s += [at] * len(event.delta.token_ids)
        has_summary = has_summary or event.HasField("summary")
    error = None if answer.code == "OK" else answer.code
    if error is None and not has_summary:
        error = "INCOMPLETE"
    if error is None and len(token_ids) != planned.num_output:
        error = f"{len(token_ids)} of {planned.num_output} tokens"
    return Timed(
        due_s=answer.due_s,
        sent_s=answer.sent_s,
        end_s=answer.end_s,
        token_s=tuple(token_s),
        num_prompt_tokens=len(planned.prompt),
        num_tokens=len(token_ids),
        token_ids=tuple(token_ids),
        error=error,
    )
