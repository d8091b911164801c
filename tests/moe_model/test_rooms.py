"""The rules of the model's rooms, read from the syntax trees as tests/test_architecture.py does."""

import ast
from pathlib import Path
from typing import get_args

from moe_model.kernels.cache_layout import CacheLayoutName
from tests.sources import PRODUCT, ROOT, WITHOUT_TESTS, files, importers, imports, tree


def test_the_parts_of_a_model_are_data() -> None:
    """What a family says of its parts, and router rules, know no kernels and no layers."""
    for name in ("specs", "router_rules", "expert_groups"):
        path = f"moe_model/layers/{name}.py"
        ours = {name.rpartition(".")[0] for name, _ in imports(Path(path)) if name.startswith("moe_model")}
        assert ours <= {
            *("moe_model.errors", "moe_model.checks", "moe_model.files.strict_json"),
            "moe_model.layers.expert_groups",
        }, path


def test_families_and_layers_know_kernels_by_their_base() -> None:
    for path, found in importers("moe_model.kernels", "moe_model/families", "moe_model/layers").items():
        assert [name for name in found if not name.startswith("moe_model.kernels.base.")] == [], path


def test_c_kernels_are_known_where_they_are_chosen_and_served() -> None:
    known = [
        path for path in importers("moe_model.kernels.native", *PRODUCT) if "/kernels/native/" not in path
    ]
    assert known == ["expert_workers/transports/stream/serve_loop.py", "moe_model/kernels/choice.py"]


def test_one_module_knows_the_layouts_of_a_cache() -> None:
    """Others pass on the name that the kernels give."""
    layouts = set(get_args(CacheLayoutName))
    naming = [
        path.as_posix()
        for path in files(*WITHOUT_TESTS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in layouts
    ]
    assert set(naming) == {
        "moe_model/kernels/cache_layout.py",
        "moe_model/kernels/native/paged.py",
        "moe_model/kernels/torch_kernels.py",
    }


def test_a_family_is_known_by_the_registry_alone() -> None:
    """Whatever needs one asks `family_of`; a family reads no files."""
    folders = {path.parts[2] for path in files("moe_model/families") if len(path.parts) > 3}
    assert {"mixtral", "modularforge"} <= folders
    for name in folders:
        found = importers(f"moe_model.families.{name}", *PRODUCT)
        assert [path for path in found if f"/families/{name}/" not in path] == []
    for room in ("moe_model.checkpoint", "moe_model.text", "safetensors", "tokenizers"):
        assert importers(room, "moe_model/families") == {}


def test_a_family_is_small() -> None:
    for folder in {path.parent for path in files("moe_model/families") if len(path.parts) > 3}:
        lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).glob("*.py")]
        assert sum(lines) < 250, folder


def test_what_is_remote_is_opened_from_outside() -> None:
    """Readers of files know a hook, and neither caches nor stores: a checkpoint is a folder to them."""
    room = "moe_model.remote"
    openers = {path for path in importers(room, *PRODUCT) if not path.startswith("moe_model/remote/")}
    assert openers <= {
        *(f"coordinator/server/{name}.py" for name in ("open_checkpoint", "open_fleet")),
        *(f"expert_workers/worker/{name}.py" for name in ("expert_source", "offer")),
        *(f"expert_workers/transports/ray/{name}.py" for name in ("actor", "peers")),
        *(f"coordinator/commands/{name}_checkpoint.py" for name in ("export", "import", "init", "inspect")),
        *(f"coordinator/commands/{name}.py" for name in ("doctor", "head", "join", "sums")),
        "expert_workers/machines/node_checks.py",
    }
    for path, found in importers("moe_model", "moe_model/remote").items():
        known = (
            "moe_model.remote.",
            "moe_model.files.",
            "moe_model.checkpoint.",
            "moe_model.errors.",
            "moe_model.halt.",
        )
        assert [name for name in found if not name.startswith(known)] == [], path


def test_transformers_is_for_tests() -> None:
    assert importers("transformers", *PRODUCT) == {}
