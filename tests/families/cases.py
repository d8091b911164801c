"""The cases of all families. One more family: one more module of them, and its name here."""

from tests.families.case import Case
from tests.families.corrected_cases import CORRECTED
from tests.families.gpt_oss_case import GPT_OSS
from tests.families.grouped_cases import GROUPED
from tests.families.latent_cases import LATENT

CASES: dict[str, Case] = {case.name: case for case in (*GROUPED, *CORRECTED, *LATENT, GPT_OSS)}
