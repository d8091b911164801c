"""Logprobs of many rows at once: as the definition says, for the rows that want them."""

import torch

from coordinator.engine.sampling.logprobs import token_logprobs


def test_only_the_rows_that_want_them_and_as_many_as_they_want() -> None:
    logits_RV = torch.randn(5, 30, generator=torch.Generator().manual_seed(2))
    raw_RV = logits_RV.log_softmax(-1)
    found = token_logprobs(logits_RV, [3, 4, 5, 6, 7], [None, 0, 3, None, 30])
    assert found[0] is None
    assert found[3] is None
    for row, token_id, count in ((1, 4, 0), (2, 5, 3), (4, 7, 30)):
        score = found[row]
        assert score is not None
        assert score.token_id == token_id
        assert abs(score.logprob - raw_RV[row, token_id].item()) < 1e-6
        assert score.rank == int((logits_RV[row] > logits_RV[row, token_id]).sum()) + 1
        assert [i for i, _ in score.top] == logits_RV[row].argsort(descending=True)[:count].tolist()


def test_equals_stand_in_the_order_of_their_ids() -> None:
    logits_RV = torch.zeros(1, 20)
    logits_RV[0, 10:] = -1
    (score,) = token_logprobs(logits_RV, [9], [4])
    assert score is not None
    assert ([i for i, _ in score.top], score.rank) == ([0, 1, 2, 3], 1)


def test_what_cannot_be_is_minus_infinity() -> None:
    logits_RV = torch.tensor([[0.0, float("-inf"), 1.0]])
    (score,) = token_logprobs(logits_RV, [1], [3])
    assert score is not None
    assert (score.logprob, score.rank) == (float("-inf"), 3)
