"""expertmesh head: the first machine of a cluster, which the others join, until a signal."""

import argparse
import ipaddress
import sys

from coordinator.api.security.backoff import Backoff
from coordinator.commands.cluster_arguments import CLUSTER_FOLDER
from coordinator.commands.head_arguments import HeadArguments
from coordinator.server.environment import for_processes
from coordinator.server.stop_signals import signals_heard_by
from expert_workers.machines.head import HeadPlan, HeadReady, run_head
from expert_workers.machines.reach import own_address
from expert_workers.machines.wakes import Wakes
from expertmesh.commands.options import options_of
from moe_model.errors import ConfigError, HaltedError
from moe_model.machine import usable_cores


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError where it cannot begin, or where Ray's head has died."""
    plan = _plan(options_of(args, HeadArguments))
    args.report("Ray")

    def ready(started: HeadReady) -> None:
        args.report.done()
        sys.stdout.write(_announced(plan, started))
        sys.stdout.flush()

    with Wakes() as wakes, signals_heard_by(wakes.hear):
        try:
            run_head(plan, wakes, Backoff(), ready)
        except HaltedError:
            sys.stderr.write("stopped\n")
    return 0


def _plan(given: HeadArguments) -> HeadPlan:
    own = own_address()
    address = given.address or own
    if address == "127.0.0.1" != own:
        raise ConfigError(
            f"head address 127.0.0.1: Ray itself goes to {own} instead; for a cluster on this machine alone "
            "say another one of loopback, as 127.0.0.2"
        )
    if given.no_tls and not (given.insecure or ipaddress.ip_address(address).is_loopback):
        raise ConfigError(
            f"head address {address}: other machines can reach it, without TLS; leave out --no-tls, "
            "or say --insecure"
        )
    return HeadPlan(
        folder=given.folder,
        address=address,
        port=given.port,
        enrol_port=given.enrol_port,
        ports=given.ports.ports,
        certificates=given.certificates,
        has_tls=not given.no_tls,
        environment=for_processes(),
        num_cpus=usable_cores().number if given.with_worker else 0,
    )


def _announced(plan: HeadPlan, started: HeadReady) -> str:
    """One line for programs, and those that a person pastes."""
    tls = "on" if started.membership.has_tls else "off"
    folder = started.token.parent
    usual = plan.folder == CLUSTER_FOLDER
    return (
        f"READY head={started.membership.head} enrol={started.enrol} tls={tls} token={started.token}\n"
        f"Copy {started.token} to each further machine (mode 600: it is a secret), and there:\n"
        f"  expertmesh join {started.enrol} --token-file {started.token.name}"
        f"{' --certificates DIR' if plan.certificates else ''}\n"
        f"Then here:\n"
        f"  expertmesh serve MODEL --cluster{'' if usual else f' {folder}'} --workers-per-node 1\n"
    )
