"""Headers in, identities or errors out; wrong ones slowed down."""

import hmac
from pathlib import Path

import pytest

from coordinator.api.security.api_keys import ApiKeys, key_of
from coordinator.api.security.auth import (
    MAX_HEADER_CHARS,
    Identity,
    KeyAuthenticator,
    NoAuthenticator,
    require_admin,
    single,
)
from coordinator.api.security.backoff import Backoff, BackoffConfig
from coordinator.api.shared.errors import ApiError, Reason
from tests.coordinator.api.clock import Clock

ALICE, ROOT = "em-alice-alice-alice", "em-root-root-root-root"
PEER = "ipv4:10.1.1.1:1000"


def authenticator(clock: Clock | None = None) -> KeyAuthenticator:
    keys = ApiKeys([key_of("alice", ALICE), key_of("root", ROOT, is_admin=True)])
    return KeyAuthenticator(keys, Backoff(BackoffConfig(), clock or Clock()))


def reason_of(found: KeyAuthenticator, header: str | None, peer: str = PEER) -> Reason:
    with pytest.raises(ApiError) as caught:
        found.check(header, peer)
    return caught.value.reason


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
@pytest.mark.parametrize("blanks", [" ", "   "])
def test_a_valid_header(scheme: str, blanks: str) -> None:
    assert authenticator().check(f"{scheme}{blanks}{ALICE}", PEER) == Identity("alice")
    assert authenticator().check(f"{scheme}{blanks}{ROOT}", PEER) == Identity("root", is_admin=True)


@pytest.mark.parametrize("header", [None, ""])
def test_no_header(header: str | None) -> None:
    assert reason_of(authenticator(), header) is Reason.MISSING_API_KEY


@pytest.mark.parametrize(
    "header",
    [
        *("Bearer", "Bearer ", " ", ALICE, f"Bearer{ALICE}", f"Basic {ALICE}", f"Bearer {ALICE} "),
        *(f" Bearer {ALICE}", f"Bearer {ALICE},Bearer {ALICE}", f"Bearer {ALICE}, Bearer {ROOT}"),
        *(f"Bearer {ALICE[:-1]}", f"Bearer {ALICE}x", f"Bearer {ALICE.upper()}", f"Bearer\t{ALICE}"),
        *(f"Bearer {ALICE}\n", f"Bearer {ALICE}\x00", f"Bearer {'x' * 256}", f"Bearer {'x' * 257}"),
        *("Bearer " + "x" * 100_000, "Bearer" + " " * 100_000, "Bearer " * 10_000, f"Bearer  {ALICE}\u00a0"),
        "Bearer" + " " * (MAX_HEADER_CHARS - len(ALICE) - 5) + ALICE,
    ],
)
def test_every_other_header_is_one_wrong_key(header: str) -> None:
    assert reason_of(authenticator(), header) is Reason.INVALID_API_KEY


def test_a_header_at_the_edge() -> None:
    header = "Bearer" + " " * (MAX_HEADER_CHARS - len(ALICE) - 6) + ALICE
    assert len(header) == MAX_HEADER_CHARS
    assert authenticator().check(header, PEER).key_id == "alice"


def test_a_header_that_came_twice_is_not_valid() -> None:
    header = f"Bearer {ALICE}"
    assert single([]) is None
    assert authenticator().check(single([header]), PEER).key_id == "alice"
    assert reason_of(authenticator(), single([header, header])) is Reason.INVALID_API_KEY
    assert reason_of(authenticator(), single(["", header])) is Reason.INVALID_API_KEY


def test_errors_are_one_sentence_and_hold_no_key() -> None:
    for header in (None, f"Bearer {ALICE}x"):
        with pytest.raises(ApiError) as caught:
            authenticator().check(header, PEER)
        assert ALICE not in repr(vars(caught.value))
        assert "\n" not in caught.value.message


def test_a_thousand_wrong_keys_are_slowed_down() -> None:
    clock = Clock()
    found = authenticator(clock)
    looked_at = 0
    for number in range(1000):
        looked_at += reason_of(found, f"Bearer guess{number}") is Reason.INVALID_API_KEY
        # A hundred a second.
        clock.now += 0.01
    assert looked_at < 20


def test_after_the_wait_a_valid_key_gets_in_and_stays_in() -> None:
    clock = Clock()
    found = authenticator(clock)
    for number in range(50):
        reason_of(found, f"Bearer guess{number}")
    with pytest.raises(ApiError) as caught:
        found.check(f"Bearer {ALICE}", PEER)
    error = caught.value
    assert (error.reason, error.code) == (Reason.QUOTA_EXCEEDED, "RESOURCE_EXHAUSTED")
    assert error.quota is not None
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 60
    clock.now += error.retry_after
    assert found.check(f"Bearer {ALICE}", PEER).key_id == "alice"
    # Whatever comes from there now, alice is known.
    for number in range(50):
        reason_of(found, f"Bearer guess{number}")
        assert found.check(f"Bearer {ALICE}", PEER).key_id == "alice"
    assert reason_of(found, f"Bearer {ROOT}") is Reason.QUOTA_EXCEEDED
    assert found.check(f"Bearer {ROOT}", "10.1.1.2:1").key_id == "root"


def test_a_waiting_guesser_cannot_tell_a_right_guess_from_a_wrong_one() -> None:
    found = authenticator()
    answers = set()
    for number in range(50):
        reason_of(found, f"Bearer guess{number}")
    for guess in ("x" * 20, ALICE, ROOT):
        with pytest.raises(ApiError) as caught:
            found.check(f"Bearer {guess}", PEER)
        answers.add((caught.value.reason, caught.value.message, caught.value.retry_after))
    assert len(answers) == 1


def test_callers_without_a_key_are_not_guessers() -> None:
    found = authenticator()
    for _ in range(100):
        assert reason_of(found, None) is Reason.MISSING_API_KEY
    assert found.check(f"Bearer {ALICE}", PEER).key_id == "alice"


def test_missing_and_wrong_take_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: every header costs one comparison with every key."""
    keys = ApiKeys([key_of(f"k{number}", f"em-{number:020}") for number in range(100)])
    found = KeyAuthenticator(keys)
    num_compared = 0

    def compared(one: bytes, other: bytes) -> bool:
        nonlocal num_compared
        assert len(one) == len(other)
        num_compared += 1
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compared)
    for header in (None, "", "nonsense", "Bearer " + "x" * 23, f"Bearer em-{0:020}", f"Bearer em-{99:020}"):
        num_compared = 0
        found.recognise(header)
        assert num_compared == 100, header


def test_without_keys_everybody_may_do_everything() -> None:
    for header in (None, "", "Bearer x"):
        identity = NoAuthenticator().check(header, PEER)
        assert identity == Identity("", is_admin=True)
        require_admin(identity)


def test_only_admins_are_admins() -> None:
    require_admin(Identity("root", is_admin=True))
    with pytest.raises(ApiError) as caught:
        require_admin(Identity("alice"))
    assert caught.value.reason is Reason.NOT_ALLOWED


def test_keys_in_use_change(tmp_path: Path) -> None:
    clock = Clock()
    found = authenticator(clock)
    found.check(f"Bearer {ALICE}", PEER)
    other = KeyAuthenticator(ApiKeys([key_of("alice", ROOT)]), Backoff(clock=clock))
    assert other.check(f"Bearer {ROOT}", PEER).key_id == "alice"
    assert reason_of(other, f"Bearer {ALICE}") is Reason.INVALID_API_KEY
