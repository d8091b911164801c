import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.slices import cut


@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_each_pair_gets_its_token_s_row_and_each_row_is_sent_once(
    num_tokens: int, top_k: int, data: st.DataObject
) -> None:
    n_experts = top_k + data.draw(st.integers(0, 3))
    ids = np.stack([data.draw(st.permutations(range(n_experts)))[:top_k] for _ in range(num_tokens)])
    order = np.argsort(ids.flatten(), kind="stable")
    counts = np.bincount(ids.flatten(), minlength=n_experts).tolist()
    active = [(expert, count) for expert, count in enumerate(counts) if count]
    segments = sorted(data.draw(st.lists(st.sampled_from(active), min_size=1, unique=True)))
    x_TD = np.arange(num_tokens, dtype=np.float32)[:, None]

    part = cut(x_TD, order // top_k, counts, segments)

    pairs = np.concatenate([np.arange(len(order))[where] for where in part.pairs])
    assert ids.flatten()[order][pairs].tolist() == [e for e, count in segments for _ in range(count)]
    rows = part.x_RD if part.row_index is None else part.x_RD[part.row_index]
    assert np.array_equal(rows, x_TD[(order // top_k)[pairs]])
    assert len(np.unique(part.x_RD)) == len(part.x_RD)


def test_an_index_is_sent_only_where_a_row_is_used_twice() -> None:
    x_TD, tokens = np.eye(2, dtype=np.float32), np.array([0, 1, 1])
    assert cut(x_TD, tokens, [2, 1], [(0, 2)]).row_index is None
    shared = cut(x_TD, tokens, [2, 1], [(0, 2), (1, 1)])
    assert shared.row_index is not None
    assert shared.row_index.tolist() == [0, 1, 1]
    assert len(shared.x_RD) == 2
