"""The table: for each family of the registry each feature of the product works, or is refused by name.

Kernels, numbers of workers and a worker that is killed are in test_transformers.py.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.engine.messages.errors import ExchangeError
from moe_model.families import REGISTRY
from moe_model.kernels.choice import HAS_NATIVE
from tests.families.features import FEATURES, Check
from tests.families.ours import CONFIG
from tests.families.rows import OWN_FORMAT, Row, case_of, write_row

# (family, feature) -> what the refusal says to the operator.
REFUSED: dict[tuple[str, str], str] = {
    (family, feature): r"experts cannot be in \d groups of \d, by number"
    for family in ("deepseek_v2", "deepseek_v3")
    for feature in ("add_an_expert", "remove_an_expert")
}


def test_every_family_is_in_the_table() -> None:
    assert [name for name in REGISTRY if name != OWN_FORMAT and case_of(name) is None] == []


def test_no_refusal_is_of_something_else() -> None:
    names = {feature.__name__ for feature in FEATURES}
    assert [key for key in REFUSED if key[0] not in REGISTRY or key[1] not in names] == []


@pytest.fixture(scope="module", params=REGISTRY)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Row:
    family = request.param
    checkpoint = write_row(family, tmp_path_factory.mktemp(family))
    return Row(family, checkpoint, replace(CONFIG, kernels="native" if HAS_NATIVE else "torch"))


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.__name__)
def test_it_works_or_is_refused(row: Row, feature: Check, tmp_path: Path) -> None:
    refusal = REFUSED.get((row.family, feature.__name__))
    if refusal is None:
        feature(row, tmp_path)
    else:
        with pytest.raises(ExchangeError, match=refusal):
            feature(row, tmp_path)
