from moe_model.layers.expert_slices import WHOLE, ExpertSlice
from moe_model.versions.expert_versions import Catalog, ExpertModule, slice_keys
from tests.models import TINY

MODULE = ExpertModule(1, 7, 2, 3)


def test_a_slice_knows_what_it_is_a_slice_of() -> None:
    slices = MODULE.slices(4)
    assert (
        [each.key for each in slices] == list(slice_keys([MODULE.key], 4)) == [(1, n) for n in range(28, 32)]
    )
    assert [each.part for each in slices] == [ExpertSlice(index, 4) for index in range(4)]
    assert {each.whole for each in slices} == {MODULE}
    assert MODULE.slices(1) == (MODULE,)
    assert (MODULE.whole, MODULE.part) == (MODULE, WHOLE)


def test_no_two_slices_have_a_slot() -> None:
    catalog = Catalog.of_checkpoint(TINY)
    assert catalog.sliced(1) == catalog
    sliced = catalog.sliced(3)
    assert len(set(sliced.keys)) == 3 * len(set(catalog.keys))
    for layer, whole in zip(sliced.columns, catalog.columns, strict=True):
        # All first slices, then all second ones.
        assert [each.whole for each in layer] == 3 * list(whole)
        assert [each.part.index for each in layer] == [index for index in range(3) for _ in whole]
