"""Models by their name on the Hugging Face hub: downloaded into the library's cache, or found there.

The library itself obeys HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and the others. It loads
what goes online only when a name is met.
"""

import io
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils.tqdm import tqdm

from moe_model.checkpoint.hugging_face.files import SMALL_FILES
from moe_model.checkpoint.hugging_face.folder import read_config, read_json
from moe_model.checkpoint.hugging_face.shards import INDEX, WEIGHTS, read_index
from moe_model.checkpoint.hugging_face.texts import MORE_TEMPLATES
from moe_model.checkpoint.reader import OnBytes
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, is_present
from moe_model.errors import CheckpointError, ExpertMeshError, HaltedError

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?")
_SMALL = (*SMALL_FILES, f"{MORE_TEMPLATES}/*.jinja")
_LOOK_SECONDS = 0.2
# Of the library's bars the one that counts what is on the disk.
_COUNTED = "huggingface_hub.snapshot_download"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub; `revision` None: its main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + ("" if self.revision is None else f"@{self.revision}")

    @classmethod
    def of(cls, given: str | Path) -> "HubModel | None":
        """What `ORG/NAME` or `ORG/NAME@REVISION` is. A path that there is, or that is in a folder there is,
        is no name."""
        path = Path(given)
        found = _NAME.fullmatch(str(given))
        if found is None or is_present(path) or is_present(Path(path.parts[0])):
            return None
        return cls(found[1], found[2])


def local_folder(given: str | Path, on_bytes: OnBytes | None = None) -> Path:
    """The folder that a path or a name means; of a model on the hub a snapshot, complete, in the cache.

    Small files come first: a model that is not understood is refused before its weights are downloaded.
    Raises CheckpointError, ConfigError; what is neither a path nor a name is left to its reader.
    """
    model = HubModel.of(given)
    if model is None:
        return Path(given)
    folder = _download(model, _SMALL, None)
    config = folder / HUGGING_FACE_CONFIG
    if not is_present(config):
        raise CheckpointError(f"{model}: is a model without a {HUGGING_FACE_CONFIG} on the Hugging Face hub")
    read_config(read_json(config), config)
    weights = sorted(set(read_index(folder).values())) if is_present(folder / INDEX) else [WEIGHTS]
    # The same commit, whatever happens to the branch meanwhile.
    _download(model, weights, on_bytes, commit=folder.name)
    missing = [name for name in weights if not (folder / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more files" if missing[1:] else ""
        raise CheckpointError(f"{model}: {missing[0]}{more} is in no cache here: {_next_step(model)}")
    return folder


def local_config(given: str | Path) -> Path:
    """As `local_folder`, of the config.json alone. Raises CheckpointError."""
    model = HubModel.of(given)
    return Path(given) if model is None else _download(model, [HUGGING_FACE_CONFIG], None)


def _download(
    model: HubModel, names: Sequence[str], on_bytes: OnBytes | None, commit: str | None = None
) -> Path:
    """The snapshot, with those of the files that the model has; without a network what there is of it."""
    found, is_left = Future[str](), threading.Event()

    def download() -> None:
        try:
            snapshot = huggingface_hub.snapshot_download(
                model.repository,
                revision=commit or model.revision,
                allow_patterns=list(names),
                library_name="expertmesh",
                tqdm_class=_bar(on_bytes, is_left),
            )
        except BaseException as error:  # noqa: BLE001
            found.set_exception(error)
        else:
            found.set_result(snapshot)

    # On a thread of its own: where Ctrl-C was heard, the library would first download what it has begun.
    threading.Thread(target=download, name="download", daemon=True).start()
    try:
        # A wait without an end would not hear a Ctrl-C that came just before it.
        while wait([found], _LOOK_SECONDS).not_done:
            pass
        return Path(found.result())
    except ExpertMeshError:
        raise
    # Some of the errors are those of the library below it, which has no base in common with it.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(f"{model}: {_reason(model, error)}") from None
    finally:
        is_left.set()


def _reason(model: HubModel, error: Exception) -> str:
    """One line: what is wrong, and what to do."""
    match error:
        case errors.GatedRepoError():
            return "asks for its terms to be accepted on its page on the Hugging Face hub; then set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return "no such folder, and no such model on the Hugging Face hub; a private one needs HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"the Hugging Face hub has no revision {model.revision} of it"
        case errors.LocalEntryNotFoundError():
            return (
                f"is no folder here, nor a model that is all in the Hugging Face cache: {_next_step(model)}"
            )
        case errors.HfHubHTTPError():
            return f"the Hugging Face hub answers {error.response.status_code}"
        case _:
            first = (str(error).splitlines() or [""])[0]
            return f"cannot be downloaded: {first[:200] or type(error).__name__}"


def _next_step(model: HubModel) -> str:
    if huggingface_hub.is_offline_mode():
        return "unset HF_HUB_OFFLINE, or copy the model's folder here and give its path"
    revision = "" if model.revision is None else f" --revision {model.revision}"
    download = f"hf download {model.repository}{revision}"
    return f"the hub does not have it or is out of reach (`{download}` says which); or give a folder's path"


def _bar(on_bytes: OnBytes | None, is_left: threading.Event) -> Any:
    """What the library tells of its progress, in place of its bars: those would be in the way of ours. A
    download that no caller waits for ends when it tells something."""
    bars: Any = tqdm

    class Bar(bars):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._is_told = on_bytes is not None and kwargs.get("name") == _COUNTED
            super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> Any:
            found = super().update(n)
            if self._is_told and on_bytes is not None and self.total:
                on_bytes(int(self.n), int(self.total))
            if is_left.is_set():
                raise HaltedError("no caller waits for this download")
            return found

    return Bar
