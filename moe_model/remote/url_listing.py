"""Which files a checkpoint behind a URL has: those that its readers know, by name, and no others.

A store lists what is there. Behind HTTP the names follow from manifest.json, or from config.json and the
index of its tensors.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moe_model.checkpoint.hugging_face.files import SMALL_FILES
from moe_model.checkpoint.hugging_face.shards import INDEX, WEIGHTS, parse_index
from moe_model.checkpoint.hugging_face.texts import MORE_TEMPLATES, OTHER_TOKENIZERS
from moe_model.checkpoint.manifest import Manifest
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, MANIFEST
from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.listing import BLOCK_SUMS, MAX_SMALL_BYTES, ON_DEMAND_SUFFIX, Listing, RemoteFile
from moe_model.remote.url_source import UrlSource

_TEXTS = (*SMALL_FILES, *OTHER_TOKENIZERS, BLOCK_SUMS)
_TEMPLATE = re.compile(rf"{MORE_TEMPLATES}/[A-Za-z0-9_][A-Za-z0-9._-]{{0,200}}\.jinja")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_MAX_SHOWN = 4


def read_listing(source: UrlSource, halt: Halt) -> Listing:
    """Raises CheckpointError, also where there is no checkpoint; HaltedError."""
    names = source.names(halt)
    first = source.look([MANIFEST, HUGGING_FACE_CONFIG], halt)
    if MANIFEST in first:
        return _own(source, first[MANIFEST], names, halt)
    if HUGGING_FACE_CONFIG not in first:
        shown = "" if names is None else f", it has {_shown(names)}"
        raise CheckpointError(
            f"{source.where}: has neither a {MANIFEST} nor a {HUGGING_FACE_CONFIG}{shown}: give the URL of a "
            "checkpoint's folder"
        )
    return Listing(_hugging_face(source, names, halt))


def _own(source: UrlSource, manifest: RemoteFile, names: Sequence[str] | None, halt: Halt) -> Listing:
    """Its sizes and sums are in it, so no other file has to be looked at."""
    where = f"{source.where}/{MANIFEST}"
    data = _read(source, MANIFEST, manifest, halt)
    parsed = Manifest.parse(data, where)
    if names is not None and (missing := parsed.files.keys() - set(names)):
        raise CheckpointError(f"{where}: {min(missing)} is missing, and the manifest lists it")
    files = {name: RemoteFile(entry.size, digest=entry.sha256) for name, entry in parsed.files.items()}
    if names is not None:
        # A store that lists its files compares versions, too.
        versions = source.look(list(files), halt)
        files = {name: replace(file, version=versions[name].version) for name, file in files.items()}
        if other := [name for name, file in files.items() if versions[name].size != file.size]:
            raise CheckpointError(f"{where}: {other[0]} has another size than the manifest says")
    source.known(files)
    return Listing(files | {MANIFEST: replace(manifest, digest=hashlib.sha256(data).hexdigest())})


def _hugging_face(source: UrlSource, names: Sequence[str] | None, halt: Halt) -> Mapping[str, RemoteFile]:
    if names is not None:
        wanted = [name for name in names if name in _TEXTS or _TEMPLATE.fullmatch(name)]
        wanted += [name for name in names if _SHARD.fullmatch(name)]
        files = dict(source.look(wanted, halt))
    else:
        files = dict(source.look(_TEXTS, halt))
        shards = [WEIGHTS]
        if INDEX in files:
            data = _read(source, INDEX, files[INDEX], halt)
            shards = sorted(set(parse_index(data, Path(f"{source.where}/{INDEX}")).values()))
        files |= source.look(shards, halt)
        if missing := [name for name in shards if name not in files]:
            raise CheckpointError(
                f"{source.where}/{missing[0]}: is not there, and holds tensors of the model"
            )
    for name in OTHER_TOKENIZERS:
        if name in files and files[name].size > MAX_SMALL_BYTES:
            del files[name]
    return {name: _with_digest(source, name, file, halt) for name, file in files.items()}


def _with_digest(source: UrlSource, name: str, file: RemoteFile, halt: Halt) -> RemoteFile:
    """What tells it from another content: the sum of a small file, or what the store says of a large one."""
    if not name.endswith(ON_DEMAND_SUFFIX):
        return file if file.version else replace(file, digest=_sum(_read(source, name, file, halt)))
    return replace(file, digest=_sum(f"{file.size} {file.version}".encode())) if file.version else file


def _read(source: UrlSource, name: str, file: RemoteFile, halt: Halt) -> bytes:
    if file.size > MAX_SMALL_BYTES:
        raise CheckpointError(
            f"{source.where}/{name}: has {file.size} bytes, at most {MAX_SMALL_BYTES} are allowed"
        )
    return source.read_whole(name, halt)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in sorted(names)[:_MAX_SHOWN])
    return shown if len(names) <= _MAX_SHOWN else f"{shown} and {len(names) - _MAX_SHOWN} more"
