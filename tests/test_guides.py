"""What a newcomer reads is so: folders, files and commands are there, words are where the glossary says."""

import re
from pathlib import Path

import pytest

from tests.tracked import tracked

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
GLOSSARY, PICTURES = ROOT / "docs" / "glossary.md", ROOT / "docs" / "how-it-works.md"
GUIDES = (README, CONTRIBUTING, GLOSSARY, PICTURES)
MAX_README_LINES = 250
# A path from the root of the repository. NAME and * stand for what is not there yet.
PATH = re.compile(
    r"(?<![\w./-])((?:client|moe_model|expert_workers|coordinator|protos|tests|docs|scripts|deploy|benchmarks|scaling)"
    r"/[\w./-]*\w(?:/|\b))"
)
# As subjects they leave the reader to find out which part acts.
VAGUE = re.compile(r"\b(whoever|whomever|nobody|anybody|somebody)\b", re.IGNORECASE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) < MAX_README_LINES


def test_every_folder_of_the_readme_s_tree_exists_and_none_is_left_out() -> None:
    tree = text_of(README).partition("## The files")[2].split("```")[1]
    top, named = "", set()
    for line in tree.splitlines():
        if found := re.match(r"((?:\w+/ ?)+) ", line):
            top = found[1].strip()
            named.add(top)
        elif found := re.match(r"  ((?:\w+/ ?)+) ", line):
            named |= {f"{top}{name}" for name in found[1].split()}
    assert {name for name in named if not (ROOT / name).is_dir()} == set()
    rooms = ("moe_model", "expert_workers", "coordinator")
    parts = [path.relative_to(ROOT).parts for path in tracked(".py")]
    folders = {f"{each[0]}/{each[1]}/" for each in parts if each[0] in rooms and len(each) > 2}
    assert {f"{each[0]}/" for each in parts if len(each) > 1} - {"scripts/"} <= named
    assert folders - named == set()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.name))
def test_every_path_of_a_guide_exists(guide: Path) -> None:
    named = [path for path in PATH.findall(text_of(guide)) if "NAME" not in path]
    assert {path for path in named if not (ROOT / path).exists()} == set()
    assert named


def test_the_guides_say_enough_to_be_worth_checking() -> None:
    rows = re.findall(r"^\| .+ \| .*`\w+/.*\|$", text_of(CONTRIBUTING), re.MULTILINE)
    assert len(rows) > 25
    assert len(terms()) > 50


def terms() -> list[tuple[str, list[str]]]:
    """(word, the files where it lives) of the glossary's tables."""
    rows = re.findall(r"^\| ([^|`]+) \| [^|]+ \| (`[^|]+`) \|$", text_of(GLOSSARY), re.MULTILINE)
    return [(word, re.findall(r"`([^`]+)`", places)) for word, places in rows]


@pytest.mark.parametrize(("word", "places"), [pytest.param(*term, id=term[0]) for term in terms()])
def test_a_word_is_used_where_the_glossary_says(word: str, places: list[str]) -> None:
    for place in places:
        said = re.sub(r"[\W_]+", "", text_of(ROOT / place)).lower()
        assert re.sub(r"[\W_]+", "", word).lower() in said, place


def test_each_word_has_one_sentence_in_one_place() -> None:
    lines = [line for line in text_of(GLOSSARY).splitlines() if line.startswith("| ") and "`" in line]
    words = [word for word, _ in terms()]
    assert len(lines) == len(words) == len(set(words))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.name))
def test_every_target_of_make_exists(guide: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = re.findall(r"(?:`|\$ )make ([a-z -]+)(?![A-Z=])", text_of(guide))
    assert {target for names in named for target in names.split("  ")[0].split()} <= targets


def test_every_name_of_a_recipe_is_in_the_code() -> None:
    code = "\n".join(
        text_of(path)
        for path in tracked(".py", ".proto", ".md", ".c", ".h")
        if path != CONTRIBUTING and path.name != "test_guides.py"
    )
    names = set(re.findall(r"`([A-Za-z_]\w+)(?:\(\))?`", text_of(CONTRIBUTING))) - {"run"}
    assert len(names) > 15
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == set()


def test_sentences_say_who_acts() -> None:
    """In pages and in the product; what was said at a release stays as it was said."""
    vague = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in tracked(".py", ".md", ".c", ".h", ".proto", ".toml")
        if path.relative_to(ROOT).parts[0] != "tests" and path.name != "CHANGELOG.md"
        for found in VAGUE.finditer(text_of(path))
    ]
    assert vague == []
