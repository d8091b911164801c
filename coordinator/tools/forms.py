"""How models write that they call a tool: marks and bodies of each family's form. Facts, and no code.

Sources: the chat templates that the families publish beside their weights. A text is written as its template
writes it, white space too: that is what the model has learned.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ObjectBody:
    """`{"name": "f", "arguments": {...}}`."""

    before: str = '{"name": '
    between: str = ', "arguments": '
    after: str = "}"


@dataclass(frozen=True, slots=True)
class NamedBody:
    """The name as it is, then the arguments as JSON."""

    before: str = ""
    between: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class TagBody:
    """The name as it is, then each argument between marks: texts as they are, all else as JSON."""

    before: str
    between: str
    key_before: str
    key_after: str
    value_after: str
    after: str = ""


Body = ObjectBody | NamedBody | TagBody


@dataclass(frozen=True, slots=True)
class CallForm:
    """`opening`, then calls, each between `before` and `after`, with `separator` between two, then `closing`.

    `id_length`: of a call's id, where the template
    asks for one of its own; 0: as OpenAI's. `text_arguments`: a template that is given the arguments of
    earlier calls as text and not as an object.
    """

    name: str
    body: Body
    opening: str = ""
    before: str = ""
    after: str = ""
    separator: str = ""
    closing: str = ""
    id_length: int = 0
    text_arguments: bool = False

    @property
    def mark(self) -> str:
        """What says that calls begin, without white space around it; empty where the calls themselves do."""
        return (self.opening.removesuffix("[") or self.before).strip()

    @property
    def is_list(self) -> bool:
        """Whether the calls are a JSON array."""
        return self.opening.endswith("[")


_GLM = TagBody("", "\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
_QWEN_CODER = TagBody("<function=", ">\n", "<parameter=", ">\n", "\n</parameter>\n", "</function>")
_DEEPSEEK_V31 = CallForm(
    "deepseek_v31",
    NamedBody(between="<｜tool▁sep｜>"),
    opening="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>",
    after="<｜tool▁call▁end｜>",
    closing="<｜tool▁calls▁end｜>",
    text_arguments=True,
)
_DEEPSEEK_V3 = replace(
    _DEEPSEEK_V31,
    name="deepseek_v3",
    body=NamedBody("function<｜tool▁sep｜>", "\n```json\n", "\n```"),
    separator="\n",
)

FORMS = {
    form.name: form
    for form in (
        # Nous Hermes, Qwen2.5, Qwen3, Granite 4.
        CallForm("hermes", ObjectBody(), before="<tool_call>\n", after="\n</tool_call>", separator="\n"),
        # Qwen3-Coder.
        CallForm("qwen3_coder", _QWEN_CODER, before="<tool_call>\n", after="\n</tool_call>", separator="\n"),
        # GLM-4.5 and later.
        CallForm("glm", _GLM, before="<tool_call>", after="</tool_call>", separator="\n"),
        # Mistral and Mixtral up to version 7 of their tokenizers, and from 11 on.
        CallForm("mistral", ObjectBody(), opening="[TOOL_CALLS] [", separator=", ", closing="]", id_length=9),
        CallForm("mistral_args", NamedBody(between="[ARGS]"), before="[TOOL_CALLS]", id_length=9),
        # DeepSeek-V3 and R1, and V3.1.
        _DEEPSEEK_V3,
        _DEEPSEEK_V31,
        # Granite 3.
        CallForm("granite", ObjectBody(), opening="<|tool_call|>[", separator=", ", closing="]"),
        # Models whose template knows nothing of tools.
        CallForm("json", ObjectBody(), opening="[", separator=", ", closing="]"),
    )
}

# What of a template's source says which form it is, in this order.
_SIGNS = (
    (("[TOOL_CALLS]", "[ARGS]"), "mistral_args"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<tool_call>", "<arg_key>"), "glm"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<|tool_call|>",), "granite"),
    (("<tool_call>",), "hermes"),
)


def form_of(template: str) -> CallForm:
    """The form that a chat template's source shows; the generic one where it shows none."""
    for signs, name in _SIGNS:
        if all(sign in template for sign in signs):
            return FORMS[name]
    return FORMS["json"]
