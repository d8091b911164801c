"""What one run of one cell gave: numbers with units in their names, and nothing that names a machine."""

from msgspec import Struct

# The quantiles that are kept of a distribution, in percent.
QUANTILES = (5, 25, 50, 75, 90, 95, 99)


class Spread(Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution: its mean, and the quantiles of QUANTILES, in their order."""

    mean: float
    quantiles: tuple[float, ...]
    num: int

    @property
    def median(self) -> float:
        return self.quantiles[QUANTILES.index(50)]


class Observation(Struct, frozen=True, forbid_unknown_fields=True):
    """One run of a cell. `failed` says why there is nothing else; None: it ran.

    Tokens are those drawn. `gap_ms`: between two tokens of a stream; `per_token_ms`: of a request, its time
    after the first token over the tokens that followed. `balancedness`: mean over maximum of the workers'
    rows, of a step. `straggler_ms`: of a dispatch, the slowest worker less the median. `split_ms`: of a mean
    step, by part: see `scaling.sweep`. `loads_LE`: rows of each expert of each layer. `timeline`: tokens
    drawn in each tenth of a second of the load. `tokens_sha`: of all tokens in the order of requests; greedy
    cells of one model must agree. `cpu_s` by role: coordinator, engine, front, workers, ray, load. `joules`:
    None where the machine does not say. `notes`: what of the workload is not as it was asked, a sentence
    each."""

    cell: str
    round: int
    seed: int
    started_at: str
    seconds: float
    failed: str | None = None
    start_s: float = 0.0
    num_requests: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    tokens_per_s: float = 0.0
    requests_per_s: float = 0.0
    first_token_ms: Spread | None = None
    per_token_ms: Spread | None = None
    gap_ms: Spread | None = None
    max_gap_ms: float = 0.0
    balancedness: float | None = None
    straggler_ms: float | None = None
    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    num_steps: int = 0
    cpu_s: dict[str, float] = {}
    memory_mb: dict[str, float] = {}
    joules: float | None = None
    load_average: float = 0.0
    split_ms: dict[str, float] = {}
    loads_LE: list[list[int]] = []
    timeline: list[int] = []
    tokens_sha: str = ""
    errors: dict[str, int] = {}
    notes: tuple[str, ...] = ()
