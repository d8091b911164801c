"""What one more machine, copy, or a faster link would bring: each planned anew."""

from dataclasses import dataclass

import msgspec

from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.machines import Machines, Path
from scaling.planning.choose import Plan, Wish, whole
from scaling.planning.setting import Setting
from scaling.planning.solve import solve

_FASTER = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """`plan` None: it cannot be, and `why`."""

    name: str
    plan: Plan | None
    why: str = ""


def changes(plan: Plan, wish: Wish) -> list[Change]:
    """The batch, the coordinator and the form stay as they are, so that only the change shows."""
    setting = plan.setting
    quickest = max(
        (m for m in setting.machines.machines if m.name != setting.coordinator or setting.holds_too),
        key=lambda m: (m.gbytes_per_s, m.name),
    )
    found = {
        f"one more machine like {quickest.name}": setting.with_(
            machines=_with_twin(setting.machines, quickest.name)
        ),
        "one more copy of each expert": setting.with_(num_copies=setting.num_copies + 1),
        f"links {_FASTER:g} times as fast": setting.with_(machines=_faster(setting.machines, _FASTER, 1.0)),
        "half of the network's delay": setting.with_(machines=_faster(setting.machines, 1.0, 0.5)),
    }
    return [_tried(name, each, wish, plan) for name, each in found.items()]


def _tried(name: str, setting: Setting, wish: Wish, before: Plan) -> Change:
    """What the machines hold now is one of the placements to choose from, where it has copies enough: nothing
    that is added makes a plan worse."""
    known = before.solution.holders if setting.num_copies == before.setting.num_copies else None
    try:
        solution = solve(setting.problem(), seconds=wish.seconds / 5, seed=wish.seed, known=known)
    except ConfigError as error:
        return Change(name, None, str(error))
    return Change(name, whole(setting, solution, wish))


def _with_twin(machines: Machines, name: str) -> Machines:
    """With a copy of a machine, which has the paths of that one; between the two, the fastest of these."""
    twin = _free_name(machines, name)
    added = msgspec.structs.replace(machines.named(name), name=twin)
    paths = [
        msgspec.structs.replace(path, between=(twin, _other(path, name)))
        for path in machines.paths
        if name in path.between
    ]
    if paths:
        best = max(paths, key=lambda path: path.gbit)
        paths.append(msgspec.structs.replace(best, between=(name, twin)))
    return msgspec.structs.replace(
        machines, machines=(*machines.machines, added), paths=(*machines.paths, *paths)
    )


def _free_name(machines: Machines, name: str) -> str:
    names = {machine.name for machine in machines.machines}
    number = 2
    while f"{name}-{number}" in names:
        number += 1
    return f"{name}-{number}"


def _other(path: Path, name: str) -> str:
    return path.between[1] if path.between[0] == name else path.between[0]


def _faster(machines: Machines, faster: float, delay: float) -> Machines:
    paths = tuple(
        msgspec.structs.replace(p, gbit=p.gbit * faster, round_trip_us=p.round_trip_us * delay)
        for p in machines.paths
    )
    link = machines.link
    if link is not None:
        gbit = None if link.gbit is None else link.gbit * faster
        link = Link(gbit, link.delay_ms * delay, link.loss_percent)
    return msgspec.structs.replace(machines, paths=paths, link=link)
