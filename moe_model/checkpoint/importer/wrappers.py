"""What training frameworks put around a model and its names, taken off again; never without a word."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_model.checkpoint.importer.dict_table import DictTable
from moe_model.checkpoint.tensor_table import RenamedTable, TensorTable
from moe_model.errors import CheckpointError

# ModularForge's own key of a state dict, and those that others use.
STATE_DICT = "model_state_dict"
_OTHER_KEYS = ("state_dict", "model", "module")
# Put before the names of a part of a model by DistributedDataParallel, torch.compile, FSDP and checkpointing.
_INNER = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module"}
)
# A dict in a file may hold itself.
_DEEPEST = 4
_MOST_SHOWN = 80


class Wrappers:
    """Takes them off, of any number of files, and remembers which there were."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    @property
    def notes(self) -> list[str]:
        """One line for each kind."""
        return [f"took {what} in {_listed(files)}" for what, files in self._found.items()]

    def state_dict(self, loaded: object, where: str) -> object:
        """The dict of tensors in what a file holds. Raises CheckpointError where it may be one of several."""
        keys: list[str] = []
        while (
            len(keys) < _DEEPEST and isinstance(loaded, Mapping) and (key := _key(loaded, where)) is not None
        ):
            loaded = loaded[key]
            keys.append(key)
        if keys not in ([], [STATE_DICT]):
            self._remember(f"the state dict under {'.'.join(keys)!r}", where)
        return loaded

    def table(self, tensors: object, where: str, roots: Collection[str], prefix: str = "") -> TensorTable:
        """A state dict; the rest as `renamed`."""
        return self.renamed(DictTable(where, tensors), roots, prefix)

    def renamed(self, table: TensorTable, roots: Collection[str], prefix: str = "") -> TensorTable:
        """A table whose names begin with one of `roots`, as far as a prefix that all of them share was in the
        way; `prefix` is put before them. Raises CheckpointError if two names would become one."""
        parts = {name: name.split(".") for name in sorted(table.names)}
        taken = _shared(list(parts.values()), roots)
        theirs: dict[str, str] = {}
        for name, components in parts.items():
            kept = components[len(taken) :]
            inner = [each for each in kept[1:-1] if each in _INNER]
            ours = prefix + ".".join(
                [kept[0], *(each for each in kept[1:-1] if each not in _INNER), *kept[1:][-1:]]
            )
            if ours in theirs:
                raise CheckpointError(
                    f"{table.where}: {name[:200]!r} and {theirs[ours][:200]!r} are one tensor's names"
                )
            theirs[ours] = name
            for each in inner:
                self._remember(f"{each!r} out of tensors' names", table.where)
        if taken:
            self._remember(
                f"the prefix '{'.'.join(taken)[:_MOST_SHOWN]}.' off all tensors' names", table.where
            )
        return RenamedTable(table, theirs)

    def _remember(self, what: str, where: str) -> None:
        files = self._found.setdefault(what, [])
        if where not in files:
            files.append(where)


def _key(loaded: Mapping[Any, Any], where: str) -> str | None:
    """Under which key the tensors are; None: here."""
    if STATE_DICT in loaded:
        return STATE_DICT
    found = [key for key in _OTHER_KEYS if _holds_tensors(loaded.get(key))]
    if len(found) > 1:
        raise CheckpointError(
            f"{where}: {found[0]!r} and {found[1]!r} both hold tensors; save the one that is meant alone"
        )
    return found[0] if found else None


def _holds_tensors(value: object) -> bool:
    """Directly, or under another such key."""
    for _ in range(_DEEPEST):
        if not isinstance(value, Mapping):
            break
        if any(isinstance(each, Tensor) for each in value.values()):
            return True
        value = next((value[key] for key in (STATE_DICT, *_OTHER_KEYS) if key in value), None)
    return False


def _shared(names: Sequence[Sequence[str]], roots: Collection[str]) -> list[str]:
    """The first components that all names have in common and that are not a model's own."""
    most = min(map(len, names), default=1) - 1
    taken: list[str] = []
    while len(taken) < most:
        component = names[0][len(taken)]
        if component in roots or any(name[len(taken)] != component for name in names):
            break
        taken.append(component)
    return taken


def _listed(files: Sequence[str]) -> str:
    others = "" if len(files) == 1 else f" and {len(files) - 1} more"
    return f"{Path(files[0]).name}{others}"
