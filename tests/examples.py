"""How many examples hypothesis tries: few in `make test`, all of them in `make test-long`.

`pytest --hypothesis-profile=full` tries all; `explore` as many, other ones in every run.
"""

from hypothesis import HealthCheck, settings

_FULL = 100  # As hypothesis has it where a test says nothing.
_QUICK = 20
_LEAST = 5

# No deadline, no complaint of slow examples: a shared machine pauses. The same examples every time, so that
# a red run is red again.
_UNHURRIED = (HealthCheck.too_slow,)


def register_profiles() -> None:
    """Before any test module says how many examples it wants; the quick one counts if no other is named."""
    for name, count, is_same in (("quick", _QUICK, True), ("full", _FULL, True), ("explore", _FULL, False)):
        settings.register_profile(
            name,
            max_examples=count,
            derandomize=is_same,
            deadline=None,
            suppress_health_check=_UNHURRIED,
        )
    settings.load_profile("quick")


def examples(in_full: int) -> int:
    """For `max_examples` of a test: `in_full` in the full profile, their share in the one that counts."""
    current = settings.get_profile(settings.get_current_profile_name())
    return max(min(in_full, _LEAST), in_full * current.max_examples // _FULL)
