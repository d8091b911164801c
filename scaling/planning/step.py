"""What a step of a plan takes, part by part: a closed form, and no simulation (see docs/plan.md).

A step is the coordinator's own work, layer by layer, and for each layer with experts the calls to workers,
until the slowest has answered. Its link carries all workers' rows one after the other.
"""

from dataclasses import dataclass

from scaling.planning.evaluate import Evaluator
from scaling.planning.problem import Holders
from scaling.planning.setting import Setting

# Two parts of a step pay where they save more than this share of it, and cost where they lose as much.
_CLEAR = 0.05
# Drafted tokens of a sequence in a step, and how many of them must be right for that to pay, at most.
DRAFT, _MOST_BREAK_EVEN = 4, 0.25


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step of `num_rows` sequences. `shared`: what is no expert, on the coordinator. `front`:
    scheduling, sampling, tokens on their way out. `calls`: the coordinator's own time for calls. `experts`,
    `delay`: of the slowest worker of each layer, its computing and its way. `link`: by how much what all
    workers send and get takes longer than that on the coordinator's link."""

    num_rows: int
    shared: float
    front: float
    calls: float
    experts: float
    delay: float
    link: float

    @property
    def seconds(self) -> float:
        return self.shared + self.front + self.calls + self.experts + self.delay + self.link

    @property
    def tokens_per_s(self) -> float:
        return self.num_rows / self.seconds

    @property
    def parts(self) -> dict[str, float]:
        return {
            "experts of the slowest worker": self.experts,
            "shared part on the coordinator": self.shared,
            "delay of the network": self.delay,
            "coordinator's link": self.link,
            "calls of the coordinator": self.calls,
            "front and scheduling": self.front,
        }

    @property
    def binds(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def own_parts(setting: Setting, num_rows: int) -> tuple[float, float]:
    """Seconds of `shared` and `front`."""
    costs, positions = setting.own_costs, num_rows * setting.context
    layers = sum(costs.shared_layer(n, num_rows, positions, positions) for n in range(setting.shape.n_layers))
    return layers + costs.head(num_rows), costs.step(num_rows, num_rows) + costs.front(num_rows)


def step_of(setting: Setting, evaluator: Evaluator, holders: Holders) -> Step:
    """Mean of the evaluator's drawn steps."""
    shared, front = own_parts(setting, setting.num_rows)
    calls = experts = delay = link = 0.0
    num_steps, pair_seconds = evaluator.drawn.shape[1], _pair_seconds(setting)
    for layer, row in enumerate(holders):
        for step in range(num_steps):
            times_M = evaluator.worker_times(layer, step, row)
            slowest, is_asked_M = int(times_M.argmax()), times_M > 0
            start = float(evaluator.problem.start_M[slowest])
            sent = pair_seconds * int(evaluator.drawn[layer, step].sum())
            delay += start
            experts += float(times_M.max()) - start
            link += max(0.0, sent + start - float(times_M.max()))
            calls += _calls(setting, int(is_asked_M.sum()), int(evaluator.drawn[layer, step].sum()))
    each = 1 / num_steps
    return Step(setting.num_rows, shared, front, calls * each, experts * each, delay * each, link * each)


def estimate(setting: Setting, experts: float) -> Step:
    """Before anything is placed, with what the experts take at least, one of them on another machine: to
    compare settings."""
    shared, front = own_parts(setting, setting.num_rows)
    layers, pairs = len(setting.shape.moe_layers), setting.num_rows * setting.shape.top_k
    asked = min(len(setting.workers), pairs, setting.shape.n_experts * setting.num_slices)
    calls = layers * _calls(setting, asked, pairs * setting.num_slices)
    link = max(0.0, layers * _pair_seconds(setting) * pairs * setting.num_slices - experts)
    far = [setting.path(m).round_trip_us for m in setting.workers if m.name != setting.coordinator]
    delay = layers * 1e-6 * min(far) if far and setting.holds_too else 0.0
    return Step(setting.num_rows, shared, front, calls, experts, delay, link)


def _pair_seconds(setting: Setting) -> float:
    """Of a row and its answer on the coordinator's own link: the fastest of its paths. What its own worker
    gets is not on it."""
    far = [setting.path(m).gbit for m in setting.workers if m.name != setting.coordinator]
    if not far:
        return 0.0
    return len(far) / len(setting.workers) * sum(setting.row_bytes) * 8e-9 / max(far)


def _calls(setting: Setting, num_asked: int, num_pairs: int) -> float:
    if not num_asked:
        return 0.0
    out, back = setting.row_bytes
    each = num_pairs // num_asked
    return num_asked * setting.own_costs.call(each * out, each * back)


def micro_batches(whole: Step, half: Step, num_layers: int) -> tuple[str, float]:
    """Two parts in flight: while one is with the workers the coordinator computes the other, so that a layer
    takes both parts' own work, or one part's and the other's way, whichever is longer. What to set, and the
    seconds of such a step."""
    own = (half.shared + half.calls) / num_layers
    away = (half.experts + half.delay + half.link) / num_layers
    busy = half.experts / num_layers
    seconds = half.front + whole.front / 2 + num_layers * max(2 * own, own + away, 2 * busy)
    if seconds < (1 - _CLEAR) * whole.seconds:
        return "2", seconds
    return ("1" if seconds > (1 + _CLEAR) * whole.seconds else "auto"), seconds


def break_even(setting: Setting, one: Step, more: Step) -> float:
    """The share of DRAFT drafted tokens that must be right for their step to pay. `more`: a step of 1 + DRAFT
    times the rows."""
    return max(0.0, (more.seconds - one.seconds) / one.seconds / DRAFT)


def speculates(share: float) -> bool:
    return share <= _MOST_BREAK_EVEN
