"""What a quantization_config may say: two methods, and every other word of it is refused by name."""

from typing import Any

import pytest
from transformers import FineGrainedFP8Config, Mxfp4Config

from moe_model.checkpoint.hugging_face.quantised import BlockFp8, Mxfp4, Quantisation, read_quantisation
from moe_model.errors import ConfigError

# As published, of DeepSeek-V3, Qwen3-FP8 and gpt-oss.
DEEPSEEK = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
QWEN = {**DEEPSEEK, "ignored_layers": ["lm_head"], "modules_to_not_convert": ["lm_head"]}
GPT_OSS = {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        (DEEPSEEK, BlockFp8(128, 128)),
        (QWEN, BlockFp8(128, 128)),
        ({**DEEPSEEK, "scale_fmt": "ue8m0", "weight_block_size": [64, 32]}, BlockFp8(64, 32)),
        (GPT_OSS, Mxfp4()),
    ],
)
def test_what_is_read(found: dict[str, Any] | None, expected: Quantisation | None) -> None:
    assert read_quantisation(found) == expected


@pytest.mark.parametrize(("written", "expected"), [(FineGrainedFP8Config, BlockFp8), (Mxfp4Config, Mxfp4)])
def test_what_transformers_writes(written: Any, expected: type) -> None:
    found = written().to_diff_dict() | written().to_dict()
    found |= {"quant_method": found["quant_method"].value}
    if "weight_block_size" in found:
        found["weight_block_size"] = list(found["weight_block_size"])
    assert isinstance(read_quantisation(found), expected)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "expected an object, got list"),
        ({}, "quant_method None is not one that is read: fp8, mxfp4"),
        *(
            ({"quant_method": method}, f"quant_method '{method}' is not one that is read")
            for method in ("compressed-tensors", "awq", "gptq", "bitsandbytes", "fbgemm_fp8")
        ),
        ({**DEEPSEEK, "fmt": "e5m2"}, "fmt: 'e5m2' is not supported"),
        ({**DEEPSEEK, "activation_scheme": "static"}, "activation_scheme: 'static' is not supported"),
        ({**DEEPSEEK, "scale_fmt": "e8m0"}, "scale_fmt: 'e8m0' is not supported"),
        ({**DEEPSEEK, "expert_dtype": "fp4"}, "expert_dtype: 'fp4' is not supported"),
        ({**DEEPSEEK, "weight_block_size": None}, "weight_block_size: None is not the two sizes"),
        ({**DEEPSEEK, "weight_block_size": [128]}, "is not the two sizes of a block"),
        ({**DEEPSEEK, "weight_block_size": [128, 0]}, "is not the two sizes of a block"),
        ({**DEEPSEEK, "weight_block_size": [True, 1]}, "is not the two sizes of a block"),
        ({**DEEPSEEK, "ignored_layers": "lm_head"}, "ignored_layers: expected a list of names"),
        ({**DEEPSEEK, "kv_cache_scheme": {}}, "unknown key 'kv_cache_scheme'"),
        ({**GPT_OSS, "fmt": "e4m3"}, "unknown key 'fmt'"),
    ],
)
def test_what_is_refused(found: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_quantisation(found)
    assert str(caught.value).startswith("quantization_config: ")
    assert message in str(caught.value)
