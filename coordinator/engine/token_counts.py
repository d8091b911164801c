"""How often each sequence has seen each token; kept from step to step, for those that have penalties.

Shapes: S slots, R rows asked for, V vocabulary, N new tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_SLOTS = 8


class TokenCounts:
    """One slot per sequence. What was counted before is not counted again."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._counts_SV = torch.zeros(0, vocab_size, device=device)
        self._seen_SV = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._slots: dict[int, int] = {}
        self._num_counted: dict[int, int] = {}
        self._free: list[int] = []

    def of(self, sequences: Sequence[tuple[int, list[int], int]]) -> tuple[Tensor, Tensor]:
        """Output counts, and what is in prompt or output, of each (key, token ids, number in the prompt)."""
        slots = [self._slot(key) for key, _, _ in sequences]
        new_slots: list[int] = []
        new_ids: list[int] = []
        is_output: list[bool] = []
        for (key, token_ids, num_prompt), slot in zip(sequences, slots, strict=True):
            start = self._num_counted[key]
            new_ids += token_ids[start:]
            new_slots += [slot] * (len(token_ids) - start)
            is_output += [position >= num_prompt for position in range(start, len(token_ids))]
            self._num_counted[key] = len(token_ids)
        self._add(new_slots, new_ids, is_output)
        return self._counts_SV[slots], self._seen_SV[slots]

    def forget(self, key: int) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            del self._num_counted[key]
            self._counts_SV[slot] = 0
            self._seen_SV[slot] = False
            self._free.append(slot)

    def _add(self, slots: list[int], token_ids: list[int], is_output: list[bool]) -> None:
        if not slots:
            return
        device = self._counts_SV.device
        index_2N = torch.tensor([slots, token_ids], device=device)
        ones_N = torch.tensor(is_output, dtype=torch.float32, device=device)
        self._counts_SV.index_put_(tuple(index_2N), ones_N, accumulate=True)
        self._seen_SV.index_put_(tuple(index_2N), torch.tensor(True, device=device))

    def _slot(self, key: int) -> int:
        if key not in self._slots:
            if not self._free:
                self._grow()
            self._slots[key] = self._free.pop()
            self._num_counted[key] = 0
        return self._slots[key]

    def _grow(self) -> None:
        old = len(self._counts_SV)
        new = max(FIRST_SLOTS, old)
        vocab_size = self._counts_SV.shape[1]
        self._counts_SV = torch.cat([self._counts_SV, self._counts_SV.new_zeros(new, vocab_size)])
        self._seen_SV = torch.cat([self._seen_SV, self._seen_SV.new_zeros(new, vocab_size)])
        self._free += range(old + new - 1, old - 1, -1)
