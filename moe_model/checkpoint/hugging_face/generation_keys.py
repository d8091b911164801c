"""What a generation_config.json may ask for that is not done here: named, never passed over in silence.

How long an output may be is the server's and the request's to say; what only speeds up, only reports, or is
only for encoders changes no token. Names and neutral values were read in transformers 5.24.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from moe_model.files.strict_json import brief

# With the values, besides null, that leave every token as it is.
_NOT_DONE: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "sequence_bias": ({}, []),
    "stop_strings": ([], ""),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "top_h": (1,),
    "typical_p": (1,),
    "watermarking_config": (),
}


def not_done(given: Mapping[str, Any], where: str) -> Iterator[str]:
    """A note on each value that would change an output."""
    for key, neutral in _NOT_DONE.items():
        value = given.get(key)
        if value is not None and not any(value == each for each in neutral):
            yield f"{where}: {key}: {brief(value)} is not done here, outputs are without it"
