"""AssembledModel: the whole model in one process, without a cache; the oracle for everything else.

Shapes: B batch, S sequence, T = B·S tokens, D d_model, H heads, G key/value heads, d head size, V vocabulary.
"""

import secrets
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import NumericError, UserError
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.layers.attention import Attend, AttentionForm, Kept
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import Routing, row_selection
from moe_model.loading import load_local_experts, load_model
from moe_model.model import Model, Observe
from moe_model.sampling.draw import sample, uniform
from moe_model.sampling.params import SamplingParams


class AssembledModel:
    """Shared part and all experts together; `forward` and `generate` are the reference semantics."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.config: ModelConfig = model.config

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        kernels: Kernels | None = None,
    ) -> Self:
        """Reads a checkpoint of ours; `kernels` None: torch's, the reference.

        Raises CheckpointError naming the file and the tensor.
        """
        checkpoint = Checkpoint.open(path)
        experts = load_local_experts(checkpoint, dtype, device, kernels)
        return cls(load_model(checkpoint, experts, dtype, device, kernels))

    @property
    def n_params(self) -> int:
        return family_of(self.config).num_params(self.config)

    @property
    def n_active_params_per_token(self) -> int:
        return family_of(self.config).num_active_params_per_token(self.config)

    @torch.no_grad()
    def forward(
        self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns float32 logits_BSV and the load-balancing loss, a scalar, as the family's authors define it
        (None where they define none).

        `attention_mask_BS` holds 1 where a token may be attended to, 0 where not. A query with nothing to
        attend to gets zeros from attention. Raises UserError for ids or lengths the model does not have.
        """
        routings: list[Routing] = []

        def observe(_layer: int, routing: Routing) -> None:
            routings.append(routing)

        h_BSD = self._hidden(input_ids_BS, attention_mask_BS, observe)
        is_text_T = None if attention_mask_BS is None else (attention_mask_BS != 0).flatten()
        balance = family_of(self.config).balance(self.config, routings, is_text_T)
        return self.model.logits(h_BSD), balance

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.9,
        eos_token_id: int | None = None,
        seed: int | None = None,
        selection: ExpertSelection | None = None,
    ) -> Tensor:
        """Appends up to `max_new_tokens` tokens to prompt ids [S] or [B, S]; returns ids [B, S + new].

        Each token sees a freshly computed window of the last max_seq_len tokens, positions from 0. Row b
        draws from the stream (seed, b); no seed means a random one. With `eos_token_id`, B must be 1.
        `selection` restricts the experts, in every layer and for every token.
        """
        ids_BS = input_ids.unsqueeze(0) if input_ids.dim() == 1 else input_ids
        if eos_token_id is not None and ids_BS.shape[0] != 1:
            raise UserError(f"eos_token_id: needs a batch of one sequence, got {ids_BS.shape[0]}")
        params = SamplingParams(
            temperature, top_k, top_p, seed=secrets.randbits(64) if seed is None else seed
        )
        for _ in range(max_new_tokens):
            next_B = self._next_tokens(ids_BS, params, selection)
            ids_BS = torch.cat([ids_BS, next_B.unsqueeze(1).to(ids_BS)], dim=1)
            if eos_token_id is not None and int(next_B) == eos_token_id:
                break
        return ids_BS

    def _next_tokens(
        self, ids_BS: Tensor, params: SamplingParams, selection: ExpertSelection | None
    ) -> Tensor:
        batch, position = ids_BS.shape
        h_BSD = self._hidden(ids_BS[:, -self.config.max_seq_len :], selection=selection)
        logits_BV = self.model.logits(h_BSD[:, -1])
        if not logits_BV.isfinite().all():
            raise NumericError(f"the model's logits for token {position} are not finite")
        uniforms = [uniform(params.seed, row, position) for row in range(batch)]
        return torch.tensor(sample(logits_BV, [params] * batch, uniforms))

    def _hidden(
        self,
        ids_BS: Tensor,
        attention_mask_BS: Tensor | None = None,
        observe: Observe | None = None,
        selection: ExpertSelection | None = None,
    ) -> Tensor:
        batch, seq_len = self._check_ids(ids_BS)
        if attention_mask_BS is not None and attention_mask_BS.shape != ids_BS.shape:
            raise UserError(f"attention_mask: shape {tuple(attention_mask_BS.shape)}, not {(batch, seq_len)}")
        positions_T = torch.arange(seq_len, device=self.model.device).repeat(batch)
        ids_T = ids_BS.flatten().to(self.model.device)
        attend = dense_attention(batch, seq_len, attention_mask_BS)
        config = self.config
        rows = row_selection(
            [(selection, batch * seq_len)], config.n_experts, config.top_k, self.model.device
        )
        gates = self.model.gates

        def route(layer: int, x_TD: Tensor) -> Routing:
            gate = gates[layer]
            assert gate is not None, "a dense layer routes nothing"
            return gate.router(x_TD, rows)

        return self.model.forward(ids_T, positions_T, attend, observe, route).view(batch, seq_len, -1)

    def _check_ids(self, ids_BS: Tensor) -> tuple[int, int]:
        if ids_BS.dim() != 2 or not ids_BS.numel():
            raise UserError(f"input_ids: expected a non-empty [B, S], got shape {tuple(ids_BS.shape)}")
        if ids_BS.shape[1] > self.config.max_seq_len:
            raise UserError(f"input_ids: {ids_BS.shape[1]} tokens, the model takes {self.config.max_seq_len}")
        low, high = int(ids_BS.min()), int(ids_BS.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise UserError(f"input_ids: {bad} is not in [0, {self.config.vocab_size})")
        return ids_BS.shape[0], ids_BS.shape[1]


def dense_attention(batch: int, seq_len: int, attention_mask_BS: Tensor | None) -> Attend:
    """Causal attention over whole sequences of one length, with an optional padding mask. Query head h sees
    key head h // (H / G).

    Written out as in Vaswani et al., 2017, section 3.2.1: this is the specification that the paged kernels
    are compared with.
    """

    def attend(_layer: int, form: AttentionForm, q_THd: Tensor, kept: Kept) -> Tensor:
        k_TGd, v_TGd = kept if form.value_width is None else (kept[0], kept[0][..., : form.value_width])
        num_groups = q_THd.shape[1] // k_TGd.shape[1]
        k_THd, v_THd = (x_TGd.repeat_interleave(num_groups, dim=1) for x_TGd in (k_TGd, v_TGd))
        q_BHSd, k_BHSd, v_BHSd = (
            x_THd.view(batch, seq_len, *x_THd.shape[1:]).transpose(1, 2) for x_THd in (q_THd, k_THd, v_THd)
        )
        ones_SS = torch.ones(seq_len, seq_len, dtype=torch.bool, device=q_THd.device)
        hidden_SS = ones_SS.triu(1)
        if form.window is not None:
            hidden_SS |= ones_SS.tril(-form.window)
        scores_BHSS = q_BHSd @ k_BHSd.transpose(-2, -1) * form.scale
        scores_BHSS = scores_BHSS.masked_fill(hidden_SS, float("-inf"))
        if attention_mask_BS is not None:
            padding_B11S = (attention_mask_BS == 0)[:, None, None, :].to(q_THd.device)
            scores_BHSS = scores_BHSS.masked_fill(padding_B11S, float("-inf"))
        weights_BHSS = _softmax(scores_BHSS, form.sinks_H)
        if attention_mask_BS is not None:
            weights_BHSS = weights_BHSS.nan_to_num(0.0)
        o_BSHd = (weights_BHSS @ v_BHSd).transpose(1, 2)
        return o_BSHd.reshape(*q_THd.shape[:2], -1)

    return attend


def _softmax(scores_BHSS: Tensor, sinks_H: Tensor | None) -> Tensor:
    if sinks_H is None:
        return scores_BHSS.softmax(dim=-1)
    sinks_BHS1 = sinks_H.to(scores_BHSS)[:, None, None].expand(*scores_BHSS.shape[:3], 1)
    return torch.cat([scores_BHSS, sinks_BHS1], dim=-1).softmax(dim=-1)[..., :-1]
