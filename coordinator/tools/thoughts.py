"""Between which marks a family's models think, read from their template. Facts, and no code.

Sources: the chat templates that the families publish beside their weights.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """A thought stands between the two."""

    begin: str
    end: str


# DeepSeek-R1 and V3.1, Qwen3, GLM-4.5 and others; Magistral.
MARKS = (ThoughtMarks("<think>", "</think>"), ThoughtMarks("[THINK]", "[/THINK]"))


def thoughts_of(template: str) -> ThoughtMarks | None:
    """None where the template knows of no thoughts."""
    return next((marks for marks in MARKS if marks.end in template), None)


def is_thinking(marks: ThoughtMarks, prompt: str) -> bool:
    """Whether a rendered prompt ends within a thought that it has begun for the model."""
    return prompt.rstrip().endswith(marks.begin)
