"""What each sequence has seen, kept from step to step for those that have penalties.

Shapes: S slots, R rows asked for, V vocabulary, L tokens of the longest sequence, N new tokens,
M drafted tokens of the longest draft.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_SLOTS, FIRST_LENGTH = 8, 64
# What fills up a draft that is shorter than another.
NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The tokens of each row, in any order and as often as they came; `output_counts_RL` says how often each
    of them was generated. Shorter rows repeat a token of theirs."""

    token_ids_RL: Tensor
    output_counts_RL: Tensor


class TokenCounts:
    """One slot per sequence. What was counted before is not counted again."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._counts_SV = torch.zeros(0, vocab_size, device=device)
        self._ids_SL = torch.zeros(0, FIRST_LENGTH, dtype=torch.int64, device=device)
        self._slots: dict[int, int] = {}
        self._num_counted: dict[int, int] = {}
        self._free: list[int] = []

    def of(self, sequences: Sequence[tuple[int, list[int], int, Sequence[int]]]) -> Seen:
        """Of each (key, token ids, number of them in the prompt, drafted tokens). Drafted ones count as if
        they had been generated, and are forgotten: a key may come several times, with different ones."""
        slots = [self._slot(key, token_ids) for key, token_ids, _, _ in sequences]
        longest = max(len(token_ids) for _, token_ids, _, _ in sequences)
        self._widen(longest)
        new_slots: list[int] = []
        new_places: list[int] = []
        new_ids: list[int] = []
        is_output: list[bool] = []
        for (key, token_ids, num_prompt, _), slot in zip(sequences, slots, strict=True):
            places = range(self._num_counted[key], len(token_ids))
            new_ids += token_ids[places.start :]
            new_places += places
            new_slots += [slot] * len(places)
            is_output += [place >= num_prompt for place in places]
            self._num_counted[key] = len(token_ids)
        self._add(new_slots, new_places, new_ids, is_output)
        token_ids_RL = self._ids_SL[slots, :longest]
        slots_R1 = torch.tensor(slots, device=token_ids_RL.device).unsqueeze(1)
        drafts = [draft for *_, draft in sequences]
        if not any(drafts):
            return Seen(token_ids_RL, self._counts_SV[slots_R1, token_ids_RL])
        drafted_RM = _filled_up(drafts).to(token_ids_RL.device)
        own_RM = torch.where(drafted_RM == NO_TOKEN, token_ids_RL[:, :1], drafted_RM)
        token_ids_RL = torch.cat([token_ids_RL, own_RM], dim=1)
        counts_RL = self._counts_SV[slots_R1, token_ids_RL]
        return Seen(token_ids_RL, counts_RL + _occurrences(drafted_RM, token_ids_RL))

    def forget(self, key: int) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            del self._num_counted[key]
            self._counts_SV[slot] = 0
            self._free.append(slot)

    def _add(self, slots: list[int], places: list[int], token_ids: list[int], is_output: list[bool]) -> None:
        if not slots:
            return
        device = self._counts_SV.device
        slots_N, places_N, ids_N = torch.tensor([slots, places, token_ids], device=device)
        ones_N = torch.tensor(is_output, dtype=torch.float32, device=device)
        self._counts_SV.index_put_((slots_N, ids_N), ones_N, accumulate=True)
        self._ids_SL.index_put_((slots_N, places_N), ids_N)

    def _slot(self, key: int, token_ids: list[int]) -> int:
        if key not in self._slots:
            if not self._free:
                self._grow()
            slot = self._slots[key] = self._free.pop()
            self._num_counted[key] = 0
            # What is beyond its end repeats its first token.
            self._ids_SL[slot] = token_ids[0]
        return self._slots[key]

    def _grow(self) -> None:
        old = len(self._counts_SV)
        new = max(FIRST_SLOTS, old)
        self._counts_SV = torch.cat(
            [self._counts_SV, self._counts_SV.new_zeros(new, self._counts_SV.shape[1])]
        )
        self._ids_SL = torch.cat([self._ids_SL, self._ids_SL.new_zeros(new, self._ids_SL.shape[1])])
        self._free += range(old + new - 1, old - 1, -1)

    def _widen(self, length: int) -> None:
        old = self._ids_SL.shape[1]
        if length > old:
            more = max(length, 2 * old) - old
            self._ids_SL = torch.cat([self._ids_SL, self._ids_SL[:, :1].expand(-1, more)], dim=1)


def _filled_up(drafts: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, drafts))
    return torch.tensor([[*draft, *[NO_TOKEN] * (longest - len(draft))] for draft in drafts])


def _occurrences(drafted_RM: Tensor, token_ids_RL: Tensor) -> Tensor:
    """How often each token is in its row's draft; one drafted position after the other."""
    counts_RL = torch.zeros_like(token_ids_RL)
    for drafted_R in drafted_RM.unbind(1):
        counts_RL += token_ids_RL == drafted_R.unsqueeze(1)
    return counts_RL
