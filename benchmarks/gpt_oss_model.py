"""A small gpt-oss that has learnt a text, its experts in MXFP4: for figures of quality, of which random
weights say little. python -m benchmarks.gpt_oss_model FOLDER, then benchmarks.quality --checkpoint FOLDER

Needs transformers, whose model it trains, and takes minutes. Shapes: B batch, S sequence, E experts,
O outputs, I inputs, N blocks of an output, k inputs of a block.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_model.text.tokenizer import Tokenizer

TOKENIZER = Path("demo/checkpoint/tokenizer.json")
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
BATCH, SEQUENCE = 8, 64
_LEARNING_RATE = 2e-3
# By code; the sign is the highest bit.
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def training_ids(tokenizer: Tokenizer, num_tokens: int) -> Tensor:
    """Of the interpreter's own library, file by file, until there are so many."""
    ids: list[int] = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        ids += tokenizer.encode(path.read_text(encoding="utf-8"), add_bos=True)
        if len(ids) >= num_tokens:
            break
    return torch.tensor(ids)


def train(ids: Tensor, num_steps: int, folder: Path) -> None:
    """Writes the model in bfloat16, as transformers does."""
    config = transformers.GptOssConfig(**SIZES)
    config._attn_implementation = "eager"
    model = transformers.GptOssForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(num_steps):
        starts = torch.randint(0, len(ids) - SEQUENCE, (BATCH,), generator=generator)
        ids_BS = torch.stack([ids[start : start + SEQUENCE] for start in starts.tolist()])
        loss = model(input_ids=ids_BS, labels=ids_BS).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == num_steps - 1:
            print(f"step {step:>5}  loss {loss.item():.3f}", flush=True)
    model.bfloat16().save_pretrained(folder)


def to_mxfp4(weight_EOI: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [E, O, N, 16] of two codes a byte and scales [E, O, N], as the format's authors round: the
    largest of a block has the largest exponent, and what is beyond the largest value becomes it."""
    blocks_EONk = weight_EOI.float().contiguous().view(*weight_EOI.shape[:2], -1, 32)
    largest_EON = blocks_EONk.abs().amax(dim=3)
    exponent_EON = (torch.frexp(largest_EON).exponent - 3).clamp(-127, 127)
    sizes_EONk = torch.ldexp(blocks_EONk.abs(), -exponent_EON.unsqueeze(3))
    between = (_E2M1[1:] + _E2M1[:-1]) / 2
    codes_EONk = torch.bucketize(sizes_EONk, between) | (blocks_EONk < 0).long() << 3
    low, high = codes_EONk[..., 0::2], codes_EONk[..., 1::2]
    return (low | high << 4).to(torch.uint8), (exponent_EON + 127).to(torch.uint8)


def store_in_mxfp4(folder: Path) -> None:
    """Rounds the experts' matrices in a folder that transformers wrote, whose rows are inputs there."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales = to_mxfp4(tensors.pop(name).transpose(1, 2))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a small gpt-oss and stores its experts in MXFP4.")
    parser.add_argument("folder", type=Path, help="must not exist")
    parser.add_argument(
        "--steps", type=int, default=1000, help=f"each of {BATCH * SEQUENCE} tokens (%(default)s)"
    )
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_bytes(TOKENIZER.read_bytes(), None, None)
    train(training_ids(tokenizer, args.steps * BATCH * SEQUENCE), args.steps, args.folder)
    store_in_mxfp4(args.folder)
    shutil.copy(TOKENIZER, args.folder / "tokenizer.json")


if __name__ == "__main__":
    main()
