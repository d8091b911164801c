import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.dispatch.split import cut, sort_pairs


@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_each_pair_gets_its_token_s_row_and_weight_and_each_row_is_sent_once(
    num_tokens: int, top_k: int, data: st.DataObject
) -> None:
    n_experts = top_k + data.draw(st.integers(0, 3))
    # An id of E is an absent pair.
    choices = st.permutations(range(n_experts)).map(lambda p: p[:top_k])
    ids = np.stack([data.draw(choices) for _ in range(num_tokens)])
    ids[sorted(data.draw(st.sets(st.integers(0, num_tokens - 1)))), -1] = n_experts
    weights = np.arange(ids.size, dtype=np.float32).reshape(ids.shape)
    pairs = sort_pairs(ids, weights, n_experts)
    active = [(expert, count) for expert, count in enumerate(pairs.counts_E) if count]
    if not active:
        return
    segments = sorted(data.draw(st.lists(st.sampled_from(active), min_size=1, unique=True)))
    x_TD = np.arange(num_tokens, dtype=np.float32)[:, None]

    part = cut(x_TD, pairs, segments)

    where = np.concatenate([pairs.order_P[place] for place in part.pairs])
    assert ids.flatten()[where].tolist() == [e for e, count in segments for _ in range(count)]
    assert part.weights_P.tolist() == where.tolist()
    rows = part.x_RD if part.row_index is None else part.x_RD[part.row_index]
    assert np.array_equal(rows[:, 0], where // top_k)
    assert len(np.unique(part.x_RD)) == len(part.x_RD)
    tokens = np.arange(num_tokens) if part.token_R is None else part.token_R
    assert np.array_equal(part.x_RD[:, 0], tokens)


def test_pairs_are_sorted_by_expert_and_within_one_by_token() -> None:
    ids = np.array([[1, 0], [3, 1], [1, 3]])
    pairs = sort_pairs(ids, np.ones((3, 2), np.float32), 3)
    assert pairs.counts_E == [1, 3, 0]
    assert pairs.starts_E == [0, 1, 4, 4]
    assert pairs.order_P.tolist() == [1, 0, 3, 4]
    assert pairs.token_P.tolist() == [0, 0, 1, 2]


def test_an_index_is_sent_only_where_a_row_is_used_twice() -> None:
    x_TD = np.eye(3, dtype=np.float32)
    pairs = sort_pairs(np.array([[0, 2], [0, 1], [3, 3]]), np.ones((3, 2), np.float32), 3)
    assert cut(x_TD, pairs, [(0, 2)]).row_index is None
    assert cut(x_TD, pairs, [(1, 1), (2, 1)]).row_index is None
    shared = cut(x_TD, pairs, [(0, 2), (1, 1)])
    assert shared.row_index is not None
    assert shared.row_index.tolist() == [0, 1, 1]
    assert len(shared.x_RD) == 2


def test_rows_are_not_copied_where_all_are_wanted() -> None:
    x_TD = np.eye(2, dtype=np.float32)
    pairs = sort_pairs(np.array([[0, 1], [0, 1]]), np.ones((2, 2), np.float32), 2)
    for segments in ([(0, 2)], [(0, 2), (1, 2)]):
        part = cut(x_TD, pairs, segments)
        assert part.x_RD is x_TD
        assert part.token_R is None
