"""expertmesh join: this machine becomes a node of a cluster, until a signal, which lets it leave in order."""

import argparse
import select
import subprocess
import sys
from contextlib import suppress
from os import close, pidfd_open

from coordinator.commands.cluster_arguments import enrolment
from coordinator.commands.join_arguments import JoinArguments
from coordinator.server.environment import for_processes
from coordinator.server.stop_signals import signals_heard_by
from expert_workers.machines.checks import Row
from expert_workers.machines.cluster_folder import ClusterFolder, Membership
from expert_workers.machines.joiner import JoinPlan, run_join
from expert_workers.machines.wakes import Wakes
from expertmesh.commands.options import options_of
from moe_model.errors import HaltedError
from moe_model.remote.settings import CACHE, CACHE_BYTES, cache_of

# Seconds that `expertmesh leave` has beyond its own time, for its libraries and for Ray.
_MORE = 20.0


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError where this machine cannot join, or where its head does not come back."""
    given = options_of(args, JoinArguments)
    plan = _plan(given)
    args.report("checks")

    def ready(membership: Membership) -> None:
        args.report.done()
        tls = "on" if membership.has_tls else "off"
        sys.stdout.write(f"READY node={membership.address} head={membership.head} tls={tls}\n")
        sys.stdout.flush()

    def tell(row: Row) -> None:
        sys.stderr.write(f"{row.line()}\n")

    with Wakes() as wakes, signals_heard_by(wakes.hear):

        def leave(folder: ClusterFolder) -> None:
            sys.stderr.write("leaving; a second signal ends at once\n")
            _leave(folder, given.leave_timeout, wakes)

        # Told before there was a node, or while it was gone.
        with suppress(HaltedError):
            run_join(plan, wakes, tell, ready, leave)
    sys.stderr.write("left\n")
    return 0


def _plan(given: JoinArguments) -> JoinPlan:
    host, port = enrolment(given.head)
    environment = for_processes()
    if given.cache is not None:
        environment[CACHE] = str(given.cache.absolute())
    if given.cache_bytes is not None:
        environment[CACHE_BYTES] = given.cache_bytes
    return JoinPlan(
        host=host,
        port=port,
        token_file=given.token_file,
        folder=given.folder,
        address=given.address,
        ports=given.ports.ports,
        certificates=given.certificates,
        cache=cache_of(environment).path,
        head_timeout=given.head_timeout,
        environment=environment,
    )


def _leave(folder: ClusterFolder, timeout: float, wakes: Wakes) -> None:
    """In a process of its own, as it needs Ray's library and may hang with it; ended by the second signal."""
    command = [sys.executable, "-P", "-m", "expertmesh.cli", "leave", f"--folder={folder.path}"]
    process = subprocess.Popen([*command, f"--timeout={timeout:g}"], stdin=subprocess.DEVNULL)  # noqa: S603
    ended = pidfd_open(process.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    try:
        with suppress(HaltedError):
            if not wakes.wait_hurried(poll, timeout + _MORE):
                sys.stderr.write(
                    f"workers are still here after {timeout + _MORE:g} s; leaving without them\n"
                )
    finally:
        process.kill()
        process.wait()
        close(ended)
