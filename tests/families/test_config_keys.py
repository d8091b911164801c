"""The keys of a config.json that say where code is."""

import pytest

from moe_model.errors import ConfigError
from moe_model.families.hugging_face import ConfigKeys


def test_known_code_is_not_needed() -> None:
    keys = ConfigKeys({"auto_map": {"AutoModel": "modeling_known.Model", "AutoConfig": "known.Config"}})
    keys.expect_code("modeling_known", "known")
    keys.finish()


@pytest.mark.parametrize(
    "code",
    [
        {"AutoModel": "modeling_known.Model", "AutoConfig": "evil.Config"},
        {"AutoModel": "some/else--modeling_known.Model"},
        {"AutoModel": ["modeling_known.Model"]},
        "evil.Model",
    ],
)
def test_other_code_is_refused(code: object) -> None:
    with pytest.raises(ConfigError, match=r"auto_map: .* is code that is not known, and is not run"):
        ConfigKeys({"auto_map": code}).expect_code("modeling_known")
