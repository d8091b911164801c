"""Which files a SOURCE argument means. Looks at names only."""

from dataclasses import dataclass
from pathlib import Path

from moe_model.checkpoint.recognise import (
    ASSEMBLED,
    HUGGING_FACE_CONFIG,
    MANIFEST,
    POINTER,
    SHARED_PART,
    is_pointer,
    is_readable_hugging_face,
    what_is,
)
from moe_model.errors import CheckpointError

_SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True, slots=True)
class Located:
    """`assembled` is None for a folder of parts, and for a Hugging Face one. `folder` is where the
    configuration and tokenizer.json are."""

    folder: Path
    assembled: Path | None
    note: str
    is_hugging_face: bool = False


def locate(source: Path, *, with_router: bool) -> Located:
    """Raises CheckpointError for what is no source, or when a router is given for a model that has one."""
    if source.is_dir():
        return _in_folder(source, with_router=with_router)
    if source.suffix not in _SUFFIXES or not source.is_file():
        raise CheckpointError(f"{source}: {what_is(source)}")
    if is_pointer(source):
        raise CheckpointError(f"{source}: {POINTER}")
    if with_router:
        raise CheckpointError(
            f"{source}: an assembled model has its own router; --router is for a folder of parts"
        )
    return Located(source.parent, source, f"took {source.name}")


def _in_folder(folder: Path, *, with_router: bool) -> Located:
    if (folder / MANIFEST).exists():
        raise CheckpointError(
            f"{folder}: is a checkpoint of ours already, nothing is to be imported: expertmesh serve {folder}"
        )
    assembled = next((folder / name for name in ASSEMBLED if (folder / name).exists()), None)
    has_parts = (folder / SHARED_PART).exists()
    if assembled is not None and is_pointer(assembled):
        raise CheckpointError(f"{assembled}: {POINTER}")
    if assembled is not None and not (with_router and has_parts):
        if with_router:
            raise CheckpointError(
                f"{assembled}: has its own router, and there are no parts to use --router with"
            )
        return Located(folder, assembled, f"took {assembled.name}")
    if not has_parts and is_readable_hugging_face(folder):
        if with_router:
            raise CheckpointError(f"{folder}: a Hugging Face model has its own router")
        return Located(folder, None, f"took {HUGGING_FACE_CONFIG} and its weights", is_hugging_face=True)
    if not has_parts:
        raise CheckpointError(f"{folder}: {what_is(folder)}")
    if not with_router:
        raise CheckpointError(f"{folder}: parts have no router: give --router uniform, kaiming or a file")
    unused = f", not {assembled.name}, because --router was given" if assembled else ""
    return Located(folder, None, f"took {SHARED_PART} and expert_*.pt{unused}")
