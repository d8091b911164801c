"""expertmesh doctor: what of this machine, of the way to a head, and of a cluster would go wrong."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from coordinator.commands.cluster_arguments import enrolment
from coordinator.commands.doctor_arguments import DoctorArguments
from expert_workers.cluster.ray_environment import changed_environment
from expert_workers.machines import checks
from expert_workers.machines.checks import Level, Row
from expert_workers.machines.cluster_folder import JOIN_TOKEN, ClusterFolder, Membership
from expert_workers.machines.enrol_client import EnrolClient
from expert_workers.machines.enrol_messages import EnrolRequest
from expert_workers.machines.join_token import JoinToken
from expert_workers.machines.node_checks import cluster_rows
from expert_workers.machines.reach import unreachable
from expert_workers.machines.versions import Versions
from expert_workers.machines.way_to_head import way_rows
from expertmesh.commands.options import options_of
from moe_model.errors import ClusterError, ConfigError
from moe_model.halt import Halt
from moe_model.remote.settings import cache_of


def run(args: argparse.Namespace) -> int:
    """1 where something would fail."""
    given = options_of(args, DoctorArguments)
    found = [_told("this machine", _of_this_machine(given))]
    if given.head is not None:
        found.append(_told(f"the way to {given.head}", _of_the_way(given, given.head)))
        found += _of_the_cluster(given)
    return 1 if Level.ERROR in found else 0


def _told(what: str, rows: Iterator[Row]) -> Level:
    """Shows rows as they come; the worst of them."""
    sys.stdout.write(f"{what}\n")
    worst = Level.OK
    for row in rows:
        sys.stdout.write(f"  {row.line()}\n")
        sys.stdout.flush()
        worst = max(worst, row.level, key=list(Level).index)
    return worst


def _of_this_machine(given: DoctorArguments) -> Iterator[Row]:
    yield from checks.machine_rows(given.cache or cache_of().path)
    if _membership(given) is None:
        yield checks.free_ports(given.ports.ports.all(), given.ports.ports)


def _of_the_way(given: DoctorArguments, head: str) -> Iterator[Row]:
    """The first thing that fails ends it: what comes after needs it."""
    try:
        host, port = enrolment(head)
        for why in unreachable(host, [port]).values():
            hint = "start head there; look at the address and at firewalls"
            yield Row("head", Level.ERROR, f"{head} cannot be reached: {why}", hint)
            return
        if not _token_file(given).exists():
            hint = "say where a copy of the head's join.token is (--token-file)"
            yield Row("head", Level.WARNING, "something listens there, and no more can be said", hint)
            return
        token = JoinToken.read(_token_file(given))
        membership = _membership(given)
        source = None if membership is None else membership.address
        client = EnrolClient(host, port, token, source, Halt())
        _, address = client.trust()
        yield Row("head", Level.OK, f"{client.where} is the one of the join token")
        checked = client.check(EnrolRequest(Versions.here(), time.time(), address, ""))
        yield Row("token, versions, clock", Level.OK, "as the head's")
        ports = given.ports.ports if membership is None else membership.ports
        yield from way_rows(client, ports, address, checked.head, checked.head_ports)
    except (ClusterError, ConfigError) as error:
        yield Row("head", Level.ERROR, str(error))


def _of_the_cluster(given: DoctorArguments) -> list[Level]:
    membership = _membership(given)
    if membership is None:
        row = Row(
            "cluster", Level.WARNING, "its other machines are looked at from one that is in it", "join first"
        )
        return [_told("the cluster", iter([row]))]
    folder = ClusterFolder.find(given.folder)
    try:
        with changed_environment(folder.environment(membership)):
            machines = cluster_rows(membership.head)
    except (ClusterError, ConfigError) as error:
        return [_told("the cluster", iter([Row("cluster", Level.ERROR, str(error))]))]
    return [_told(f"machine {address}", iter(rows)) for address, rows in sorted(machines.items())]


def _membership(given: DoctorArguments) -> Membership | None:
    """Of this machine, where head or join keeps it in a cluster."""
    try:
        folder = ClusterFolder.find(given.folder)
        return folder.membership() if folder.is_held() else None
    except ConfigError:
        return None


def _token_file(given: DoctorArguments) -> Path:
    return given.token_file or given.folder.expanduser() / JOIN_TOKEN
