"""Key files: what may stand in them, who matches, and what happens when they change."""

import hashlib
import logging
import time
from pathlib import Path

import pytest

from coordinator.api.security.api_keys import (
    MAX_KEYS,
    ApiKey,
    ApiKeys,
    key_of,
    new_secret,
    parse_line,
    read_keys,
)
from coordinator.api.shared.file_watch import FileWatch
from coordinator.config.key_limits import Limits, parse_limits
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import write_private

ALICE, BOB = "em-alice-alice-alice", "em-bob-bob-bob-bob"
DIGEST = hashlib.sha256(ALICE.encode()).hexdigest()


def key_file(folder: Path, *lines: str) -> Path:
    return write_private(folder / "keys", "\n".join(lines).encode())


def watched(path: Path) -> ApiKeys:
    """Keys that see a change at once."""
    return ApiKeys((), path, FileWatch((path,), interval=0))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (f"a:{DIGEST}", ApiKey("a", bytes.fromhex(DIGEST))),
        (f"a.b-c_9:{DIGEST}:admin", ApiKey("a.b-c_9", bytes.fromhex(DIGEST), True)),
        (f"a:{DIGEST}:rps=0.5", ApiKey("a", bytes.fromhex(DIGEST), False, Limits(rps=0.5))),
        (
            f"a:{DIGEST}:admin:rps=5,concurrent=8,tokens_per_minute=1000000",
            ApiKey("a", bytes.fromhex(DIGEST), True, Limits(5, 8, 1_000_000)),
        ),
    ],
)
def test_a_line_reads_as_it_is_written(line: str, key: ApiKey) -> None:
    assert parse_line(line) == key
    assert key.line() == line


@pytest.mark.parametrize(
    "line",
    [
        *("", "a", "a:", f":{DIGEST}", f"a b:{DIGEST}", f"{'x' * 65}:{DIGEST}", f"a:{DIGEST[1:]}"),
        *(f"a:{DIGEST.upper()}", f"a:{ALICE}", f"a:{DIGEST}:root", f"a:{DIGEST}:admin:rps=1:x"),
        *(f"a:{DIGEST}:rps=1:admin", f"a:{DIGEST}:", f"a:{DIGEST}0"),
    ],
)
def test_a_line_that_is_none_is_refused_unseen(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_line(line)
    assert ALICE not in str(caught.value)
    assert DIGEST[:8] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "rps", "rps=", "rps=x", "rps=0", "rps=-1", "rps=nan", "rps=inf", "rps=1e13", "rps=1,rps=2"),
        *("concurrent=1.5", "concurrent=0", "other=1", "rps=1,", "rps =1"),
    ],
)
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="limits:"):
        parse_limits(text)


def test_finds_each_key_and_no_other(tmp_path: Path) -> None:
    lines = ("# people", "", key_of("alice", ALICE).line() + "  # since May", key_of("bob", BOB).line())
    keys = ApiKeys.open(key_file(tmp_path, *lines))
    for name, secret in (("alice", ALICE), ("bob", BOB)):
        found = keys.find(secret)
        assert found is not None
        assert found.name == name
        assert not found.is_admin
    for wrong in ("", ALICE[:-1], ALICE + "x", ALICE.upper(), DIGEST, "alice", f"alice:{DIGEST}"):
        assert keys.find(wrong) is None


def test_many_keys_are_told_apart() -> None:
    secrets = [f"em-{number:020}" for number in range(MAX_KEYS)]
    keys = ApiKeys([key_of(f"k{number}", secret) for number, secret in enumerate(secrets)])
    found = [keys.find(secret) for secret in secrets]
    assert [key and key.name for key in found] == [f"k{number}" for number in range(MAX_KEYS)]
    assert all(keys.find(f"em-wrong-{number:020}") is None for number in range(1000))


def test_a_plain_key_is_nowhere_in_the_file_or_the_keys(tmp_path: Path) -> None:
    path = key_file(tmp_path, key_of("alice", ALICE).line())
    assert ALICE not in path.read_text()
    assert ALICE not in repr(ApiKeys.open(path).current())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no key"),
        (("# nothing",), "holds no key"),
        ((f"a:{DIGEST}", "b:nonsense"), "line 2: expected NAME:SHA256"),
        ((f"a:{DIGEST}", f"b:{DIGEST}"), "two lines hold the same key"),
        ((f"a:{DIGEST}", f"a:{DIGEST[::-1]}:admin"), "the lines of a differ"),
        ((f"a:{DIGEST}", f"a:{DIGEST[::-1]}:rps=1"), "the lines of a differ"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ApiKeys.open(key_file(tmp_path, *lines))


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"a:{DIGEST}")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"API key file .*run chmod 600"):
        ApiKeys.open(path)


@pytest.mark.parametrize(("count", "fits"), [(MAX_KEYS, True), (MAX_KEYS + 1, False)])
def test_as_many_keys_as_are_allowed(tmp_path: Path, count: int, fits: bool) -> None:
    path = key_file(tmp_path, *(f"k{number}:{number:064x}" for number in range(count)))
    if fits:
        assert len(read_keys(path)) == count
    else:
        with pytest.raises(ConfigError, match="1025 keys are more than 1024"):
            read_keys(path)


def test_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_keys(write_private(tmp_path / "keys", b"\xff\xfe"))


def test_one_name_with_two_keys_while_they_change(tmp_path: Path) -> None:
    old, new = key_of("alice", ALICE), key_of("alice", BOB)
    keys = ApiKeys.open(key_file(tmp_path, old.line(), new.line()))
    assert keys.find(ALICE) == old
    assert keys.find(BOB) == new


def test_keys_change_without_a_restart(tmp_path: Path) -> None:
    path = key_file(tmp_path, key_of("alice", ALICE).line())
    keys = watched(path)
    key_file(tmp_path, key_of("bob", BOB, limits=Limits(rps=2)).line())
    assert keys.find(ALICE) is None
    assert keys.find(BOB) is not None
    assert keys.limits_of("bob") == Limits(rps=2)
    assert keys.limits_of("alice") is None


@pytest.mark.parametrize("breakage", ["broken", "empty", "readable", "gone"])
def test_a_broken_new_file_keeps_the_old_keys(
    tmp_path: Path, breakage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = key_file(tmp_path, key_of("alice", ALICE).line())
    keys = watched(path)
    if breakage == "gone":
        path.unlink()
    else:
        key_file(tmp_path, *([] if breakage == "empty" else ["mallory:" + BOB]))
        path.chmod(0o644 if breakage == "readable" else 0o600)
    for _ in range(3):
        assert keys.find(ALICE) is not None
        assert keys.find(BOB) is None
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the keys stay as they were" in errors[0]
    assert BOB not in errors[0]
    key_file(tmp_path, key_of("bob", BOB).line())
    assert keys.find(BOB) is not None


def test_a_key_of_the_environment_joins_those_of_a_file(tmp_path: Path) -> None:
    keys = ApiKeys.open(key_file(tmp_path, key_of("alice", ALICE).line()), BOB)
    assert keys.find(ALICE) is not None
    given = keys.find(BOB)
    assert given is not None
    assert (given.name, given.is_admin) == ("default", True)
    assert ApiKeys.from_secret(BOB).find(BOB) == given


@pytest.mark.parametrize("secret", ["", "short", "x" * 15, "x" * 257, "with a blank in it", "umläut" * 4])
def test_a_secret_that_is_no_key_is_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError, match="16 to 256 visible ASCII") as caught:
        ApiKeys.from_secret(secret)
    assert not secret or secret not in str(caught.value)


@pytest.mark.parametrize("secret", ["x" * 16, "x" * 256])
def test_a_secret_at_the_edge(secret: str) -> None:
    assert ApiKeys.from_secret(secret).find(secret) is not None


def test_new_secrets_are_long_and_differ() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(first) >= 46
    key_of("x", first)


def test_time_does_not_tell_where_a_key_stands_or_whether_it_is_one() -> None:
    secrets = [f"em-{number:020}" for number in range(MAX_KEYS)]
    keys = ApiKeys([key_of(f"k{number}", secret) for number, secret in enumerate(secrets)])

    # In turns, so that whatever slows the machine slows all three; the least of many is free of it.
    chosen = (secrets[0], secrets[-1], "x" * 23)
    seconds: dict[str, list[float]] = {secret: [] for secret in chosen}
    for secret in chosen * 200:
        began = time.perf_counter()
        keys.find(secret)
        seconds[secret].append(time.perf_counter() - began)
    times = [min(found) for found in seconds.values()]
    assert max(times) < 1.5 * min(times)
