"""The model's tokenizer as tools look for it: a folder that transformers opens."""

import json
import shutil
from pathlib import Path

from moe_model.errors import ConfigError
from scaling.loads.base import Target


def tokenizer_folder(target: Target, folder: Path) -> Path:
    """The folder of a Hugging Face model as it is; else one that is made in `folder`. Raises ConfigError
    where the model has no tokenizer: such a model answers token ids only, and tools send texts."""
    file = target.tokenizer
    if file is None or not file.is_file():
        raise ConfigError("load: the model has no tokenizer.json, which load generators need: take tool: own")
    if (file.parent / "tokenizer_config.json").is_file():
        return file.parent.resolve()
    made = folder / "tokenizer"
    made.mkdir(exist_ok=True)
    shutil.copyfile(file, made / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": target.max_seq_len}
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="ascii")
    return made
