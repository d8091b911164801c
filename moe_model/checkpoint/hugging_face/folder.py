"""A Hugging Face folder of a family we know: its config and its tensors, checked before one is read."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_model.checkpoint.given_away import GivenAway
from moe_model.checkpoint.hugging_face.kept import form_of, how_stored, read_kept
from moe_model.checkpoint.hugging_face.quantised import QUANTIZATION, Quantisation, read_quantisation
from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.hugging_face.sources import Finder, Found, read_found
from moe_model.checkpoint.reader import OnBytes
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, MAX_CONFIG_BYTES, refuse_pointer
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import HUGGING_FACE, family_named
from moe_model.families.hugging_face import ConfigKeys, HuggingFaceModel, TensorSource
from moe_model.files import strict_json
from moe_model.files.strict_json import brief
from moe_model.files.whole_file import read_file
from moe_model.layers.expert_ffn import UNIT_ROWS, cut_expert
from moe_model.layers.expert_slices import ExpertSlice

# Derived from the config, and written by old versions all the same.
_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
# Layers that predict further tokens come after the last, as many as one of these keys says, or under a name
# of their own.
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\..*")
_NUM_PREDICTING = ("num_nextn_predict_layers", "num_mtp_modules")
_PREDICTION = re.compile(r"(model\.)?mtp[._].*")
_HEAD = "lm_head.weight"
_EMBEDDING = "embedding.weight"


class HuggingFaceFolder:
    """An opened folder. All names and shapes are right; no tensor has been read."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, ConfigError.

        `notes` say what of the tensors is not used. `dtype` is that of most bytes of the matrices: bfloat16,
        also for 8 and 4 bits, or float32, also for float16, whose values bfloat16 has not. `expert_form` is
        what all experts' matrices can be kept in.
        """
        self.path = path
        self.settings = read_json(path / HUGGING_FACE_CONFIG)
        self._model, self.config, quantisation = read_config(self.settings, path / HUGGING_FACE_CONFIG)
        family = family_named(self.config.family)
        self._shared_shapes = family.shared_shapes(self.config)
        self._expert_shapes = family.expert_shapes(self.config)
        self._float32 = family.float32_names(self.config)
        self.table = ShardedTable(path)
        self._finder = Finder(self.table, quantisation)
        shared, experts = list(self.shared().values()), list(self._of_experts())
        predicting = set(filter(self._is_predicting, self.table.names))
        derived = set(filter(_DERIVED.fullmatch, self.table.names))
        self._finder.check_whole([*shared, *experts], frozenset(predicting | derived))
        note = f"{len(predicting)} tensors of layers that predict further tokens are not used"
        self.notes = (note,) if predicting else ()
        self.dtype = _dtype_of([*shared, *experts])
        self.experts_bytes = sum(each.num_bytes for each in experts)
        matrices = [each for each in experts if len(each.shape) == 2]
        forms = {form_of(each) for each in matrices}
        self.expert_form = forms.pop() if len(forms) == 1 else None
        self.experts_stored_as = " and ".join(sorted({how_stored(each) for each in matrices}))

    def shared(self) -> dict[str, Found]:
        """Of the shared part, by our names; the head once more where it is tied and there all the same."""
        sources = self._model.shared_sources(self.config, self._shared_shapes)
        found = {name: self._finder.find(sources[name], shape) for name, shape in self._shared_shapes.items()}
        if self.config.tie_embedding and _HEAD in self.table.names:
            found[_HEAD] = self._finder.find((TensorSource(_HEAD),), self._shared_shapes[_EMBEDDING])
        return found

    def expert(self, layer: int, expert: int) -> dict[str, Found]:
        """Of one expert, by our names."""
        sources = self._model.expert_sources(self.config, layer, expert)
        return {name: self._finder.find(sources[name], shape) for name, shape in self._expert_shapes.items()}

    def found(self) -> Iterator[Found]:
        """Of everything."""
        yield from self.shared().values()
        yield from self._of_experts()

    def _of_experts(self) -> Iterator[Found]:
        for layer in self.config.moe_layers:
            for expert in self.config.experts_of(layer):
                yield from self.expert(layer, expert).values()

    def take_shared(
        self, dtype: torch.dtype, device: str | torch.device, on_bytes: OnBytes | None = None
    ) -> Mapping[str, Tensor]:
        """Each tensor is read when it is asked for. That raises CheckpointError naming folder and tensor."""
        found = self.shared()
        head, done = found.pop(_HEAD, None), 0
        total = sum(each.num_bytes for each in found.values())

        def give(name: str) -> Tensor:
            nonlocal done
            tensor = self._read({name: found[name]}, dtype, device)[name]
            if name == _EMBEDDING and head is not None:
                self._check_tied(self._read({_HEAD: head}, dtype, device)[_HEAD], tensor)
            done += found[name].num_bytes
            if on_bytes is not None:
                on_bytes(done, total)
            return tensor

        return GivenAway(found, give)

    def read_expert(
        self, layer: int, expert: int, dtype: torch.dtype, device: str | torch.device
    ) -> dict[str, Tensor]:
        """Raises CheckpointError naming the folder and the tensor."""
        return self._read(self.expert(layer, expert), dtype, device)

    def read_stored_expert(self, layer: int, expert: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Its matrices in their own bytes, of the form that all are in, the rest as `dtype`. Raises as
        `read_expert`."""
        assert self.expert_form is not None
        found = self.expert(layer, expert)
        matrices = {name: each for name, each in found.items() if len(each.shape) == 2}
        others = {name: each for name, each in found.items() if name not in matrices}
        return read_kept(matrices, str(self.path)) | self._read(others, dtype, "cpu")

    def read_slice(
        self, layer: int, expert: int, part: ExpertSlice, dtype: torch.dtype, device: str | torch.device
    ) -> dict[str, Tensor]:
        """Of matrices whose rows are hidden units, those of the slice alone are read. Raises
        CheckpointError."""
        found = self.expert(layer, expert)
        for name in found.keys() & UNIT_ROWS:
            units = part.units(found[name].shape[0])
            found[name] = replace(found[name], rows=(units.start, units.stop))
        tensors = self._read(found, dtype, device)
        return tensors | cut_expert({name: tensors[name] for name in tensors.keys() - UNIT_ROWS}, part)

    def _read(
        self, found: Mapping[str, Found], dtype: torch.dtype, device: str | torch.device
    ) -> dict[str, Tensor]:
        return read_found(found, dtype, device, str(self.path), self._float32)

    def _check_tied(self, head_VD: Tensor, embedding_VD: Tensor) -> None:
        """transformers would not tie them if they differed."""
        if not torch.equal(head_VD, embedding_VD):
            raise CheckpointError(f"{self.path}: tensor {_HEAD!r} differs from the embedding it is tied to")

    def _is_predicting(self, name: str) -> bool:
        """Of further tokens: a config with too few layers would look the same, if its keys did not say so."""
        layer, num_layers = _LAYER.fullmatch(name), self.config.n_layers
        counts = [count for key in _NUM_PREDICTING if type(count := self.settings.get(key)) is int]
        is_beyond = layer is not None and num_layers <= int(layer[1]) < num_layers + max(counts, default=0)
        return is_beyond or _PREDICTION.fullmatch(name) is not None


def _dtype_of(found: Iterable[Found]) -> torch.dtype:
    num_bytes: Counter[torch.dtype] = Counter()
    for each in found:
        if len(each.shape) == 2:
            num_bytes[each.stored.dtype] += each.num_bytes
    (dtype, _), *_ = num_bytes.most_common(1)
    return dtype if dtype == torch.bfloat16 else torch.float32


def read_json(path: Path) -> Mapping[str, Any]:
    """An object. Raises CheckpointError."""
    refuse_pointer(path)
    try:
        data = strict_json.loads(read_file(path, max_size=MAX_CONFIG_BYTES, follow_links=True))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def read_config(
    settings: Mapping[str, Any], path: Path
) -> tuple[HuggingFaceModel, ModelConfig, Quantisation | None]:
    """The model that a config.json describes, and how its weights are quantised. Raises CheckpointError,
    ConfigError naming the key."""
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in HUGGING_FACE:
        raise CheckpointError(
            f"{path}: model_type {brief(model_type)} is not one of {', '.join(HUGGING_FACE)}"
        )
    family = family_named(HUGGING_FACE[model_type])
    assert family.hugging_face is not None, "the registry names families that have such folders"
    keys = ConfigKeys({name: value for name, value in settings.items() if name != QUANTIZATION})
    try:
        quantisation = read_quantisation(settings.get(QUANTIZATION))
        config = family.hugging_face.read_config(keys)
        keys.finish()
        family.check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return family.hugging_face, config, quantisation
