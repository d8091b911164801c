"""A folder of a user's with packages that have the names of ours: code that loads one of them fails."""

from pathlib import Path

NAMES = ("protos", "benchmarks", "chaos", "coordinator", "expert_workers", "moe_model", "demo", "tests")


def foreign_folder(folder: Path) -> Path:
    """The folder itself, with the packages in it."""
    for name in NAMES:
        (folder / name).mkdir()
        text = f"raise RuntimeError('the user\\'s own {name} was loaded')\n"
        (folder / name / "__init__.py").write_text(text, encoding="utf-8")
    return folder
