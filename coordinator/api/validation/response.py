"""ResponseOptions, ExpertSelection and OutputConstraint of a request: limits, and what the engine gets."""

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ExpertIds, ServedModel
from coordinator.api.validation.tools import free_part, must_call, offered
from coordinator.api.validation.violations import Violations
from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource
from coordinator.tools.output_reader import OutputForm
from expertmesh.v1 import generation_pb2 as pb
from moe_model.layers.expert_selection import ExpertSelection

MAX_TOKENS_PER_MESSAGE = 64
MAX_CONSTRAINT_BYTES = 64 << 10
MAX_CHOICES = 256
JSON_KINDS = ("json_schema", "json_object")
# No model has so many experts; more ids are not even looked at.
MAX_EXPERT_IDS = 1 << 16


def check_response(response: pb.ResponseOptions, served: ServedModel, violations: Violations) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        value, most = getattr(response, name), served.max_logprobs
        violations.check(value <= most, f"response.{name}", value, f"[0, {most}]")
    if response.HasField("min_tokens_per_message"):
        value, most = response.min_tokens_per_message, MAX_TOKENS_PER_MESSAGE
        violations.check(1 <= value <= most, "response.min_tokens_per_message", value, f"[1, {most}]")


def check_experts(selection: pb.ExpertSelection, served: ServedModel, violations: Violations) -> None:
    if not selection.ListFields():
        return
    layers = served.experts
    known, num_experts = _known(layers), max(map(len, layers))
    for name in ("allowed_experts", "denied_experts"):
        ids, field = getattr(selection, name), f"experts.{name}"
        if len(ids) > MAX_EXPERT_IDS:
            violations.add(field, f"{len(ids)} ids are more than {MAX_EXPERT_IDS}")
            return
        for index, expert in enumerate(ids):
            if expert not in known:
                violations.add(f"{field}[{index}]", f"{expert} is not {_described(known)}")
    allowed = set(_allowed(selection, known))
    # A dense layer has no experts to choose from.
    empty = [layer for layer, experts in enumerate(layers) if experts and allowed.isdisjoint(experts)]
    if empty:
        where = "" if len(empty) == sum(map(bool, layers)) else f" in layer {empty[0]}"
        violations.add("experts", f"leaves no expert{where}")
    if selection.HasField("experts_per_token"):
        value = selection.experts_per_token
        violations.check(1 <= value <= num_experts, "experts.experts_per_token", value, f"[1, {num_experts}]")


def expert_selection(selection: pb.ExpertSelection, served: ServedModel) -> ExpertSelection | None:
    """Of a checked message; None where it selects what the model does anyway."""
    if not selection.ListFields():
        return None
    known, usual = _known(served.experts), served.config.top_k
    allowed = _allowed(selection, known)
    top_k = selection.experts_per_token or usual
    if len(allowed) == len(known) and top_k == usual:
        return None
    return ExpertSelection(allowed if len(allowed) < len(known) else None, top_k if top_k != usual else None)


def check_constraint(message: pb.GenerateRequest, violations: Violations) -> None:
    """Sizes, and that nothing else may end the output before the constraint is satisfied."""
    kind = message.constraint.WhichOneof("constraint")
    if message.constraint.compact_json and kind not in JSON_KINDS:
        violations.add("constraint.compact_json", "needs a JSON schema or any JSON object")
    if kind is not None and offered(message.chat):
        violations.add(f"constraint.{kind}", 'cannot be combined with tools; give tool_choice "none"')
    if kind is None:
        if must_call(message.chat):
            _check_ends(message.stopping, violations)
        return
    field = f"constraint.{kind}"
    if kind == "choice":
        _check_choices(message.constraint.choice, violations)
    elif kind != "json_object":
        num_bytes = len(getattr(message.constraint, kind).encode())
        fine = 1 <= num_bytes <= MAX_CONSTRAINT_BYTES
        violations.check(fine, field, num_bytes, f"[1, {MAX_CONSTRAINT_BYTES}] bytes")
    _check_ends(message.stopping, violations)


def _check_ends(stopping: pb.StoppingParams, violations: Violations) -> None:
    for name in ("stop_sequences", "stop_token_ids", "min_tokens"):
        if getattr(stopping, name):
            violations.add(f"stopping.{name}", "cannot be combined with a constraint, which ends the output")


def constraint_of(
    message: pb.GenerateRequest, served: ServedModel, form: OutputForm | None
) -> ConstraintSource | None:
    """Compiles, to see that it can be; a thought is free. Raises UNSUPPORTED_FEATURE, NO_TOKENIZER,
    INVALID_CONSTRAINT."""
    kind = message.constraint.WhichOneof("constraint")
    if kind is None:
        return None
    field = f"constraint.{kind}"
    served.require_tokenizer(field)
    if served.constraints is None or kind not in served.constraints.kinds:
        raise ApiError.of(Reason.UNSUPPORTED_FEATURE, "is not supported by this server", field=field)
    texts = _constraint_texts(message.constraint, kind)
    source = ConstraintSource(kind, texts, message.constraint.compact_json, free=free_part(form))
    try:
        served.constraints.check(source)
    except ConstraintError as error:
        raise ApiError.of(Reason.INVALID_CONSTRAINT, str(error), field=field) from None
    return source


def _constraint_texts(constraint: pb.OutputConstraint, kind: str) -> tuple[str, ...]:
    if kind == "choice":
        return tuple(constraint.choice.choices)
    return () if kind == "json_object" else (str(getattr(constraint, kind)),)


def _check_choices(choice: pb.OutputConstraint.Choice, violations: Violations) -> None:
    choices, field = choice.choices, "constraint.choice.choices"
    if not 1 <= len(choices) <= MAX_CHOICES:
        violations.add(field, f"{len(choices)} choices are not in [1, {MAX_CHOICES}]")
        return
    if not all(choices):
        violations.add(field, "has an empty choice")
    num_bytes = sum(len(each.encode()) for each in choices)
    violations.check(
        num_bytes <= MAX_CONSTRAINT_BYTES, field, num_bytes, f"[1, {MAX_CONSTRAINT_BYTES}] bytes"
    )


def _known(layers: ExpertIds) -> frozenset[int]:
    """The experts that any layer has."""
    return frozenset(expert for experts in set(layers) for expert in experts)


def _described(known: frozenset[int]) -> str:
    is_range = known == frozenset(range(len(known)))
    return f"in [0, {len(known)})" if is_range else "an expert of this model"


def _allowed(selection: pb.ExpertSelection, known: frozenset[int]) -> tuple[int, ...]:
    allowed = set(selection.allowed_experts) or known
    return tuple(sorted((allowed & known) - set(selection.denied_experts)))
