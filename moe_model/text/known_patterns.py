"""Published patterns that cut a text into words, and go over it once.

Whatever one of their alternatives gives up, another takes. DeepSeek-V2's are not among them: for each space
of a run, one of them looks at all that follow.
"""

_ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_BIG, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_LINE_ENDS = "\r\n"
_PRINTED_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

BY_MODEL = {
    "GPT-2, GPT-NeoX": rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
    "Llama 3, cl100k, dolma2, GLM-4": (rf"(?i:{_ENDINGS})|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"),
    "Qwen 2, Qwen 3": rf"(?i:{_ENDINGS})|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}",
    "Qwen 3.5": (
        rf"(?i:{_ENDINGS})|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
    ),
    "o200k, gpt-oss, MiniMax-M2": (
        rf"{_BEFORE}{_BIG}*{_SMALL}+(?i:{_ENDINGS})?|{_BEFORE}{_BIG}+{_SMALL}*(?i:{_ENDINGS})?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
    "Tekken": (
        rf"{_BEFORE}{_BIG}*{_SMALL}+|{_BEFORE}{_BIG}+{_SMALL}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
    # Two of its classes have the line ends themselves, where others have escapes.
    "DeepSeek-V3": (
        rf"{_PRINTED_SIGNS}[A-Za-z]+|[^{_LINE_ENDS}\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[{_LINE_ENDS}]*|{_SPACES}"
    ),
    "DeepSeek-V3, ideographs and kana": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "up to three digits": r"\p{N}{1,3}",
    "a digit": r"\p{N}",
    "three digits of ASCII": r"[0-9][0-9][0-9]",
    "a decimal": r"\d",
    "white space": r"\s",
    "a space": r" ",
}
KNOWN_PATTERNS = frozenset(BY_MODEL.values())
