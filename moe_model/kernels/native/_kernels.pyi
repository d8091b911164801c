"""The C functions of src/module*.c. Addresses are `Tensor.data_ptr()`, 0 for none; what they
hold is not checked. Norms, matrices and experts that do not fit each other raise ValueError."""

from typing import Any

def kernels(name: str | None, /) -> object: ...
def name(kernels: object, /) -> str: ...
def matrix(
    dtype: int,
    panels: int,
    scale: int,
    block_scales: int,
    bias: int,
    num_in: int,
    num_out: int,
    is_gated: int,
    limit: float,
    alpha: float,
    wants_exact_rows: int,
    /,
) -> object: ...
def norm(kind: int, weight: int, bias: int, eps: float, width: int, /) -> object: ...
def experts(width: int, hidden_width: int, activation: int, /, *experts: object) -> object: ...
def linear(
    kernels: object,
    matrix: object,
    x: int,
    num_rows: int,
    stride: int,
    norm: object | None,
    activation: int,
    residual: int,
    y: int,
    scratch: int,
    num_threads: int,
    /,
) -> None: ...
def normalise(kernels: object, norm: object, x: int, num_rows: int, y: int, /) -> None: ...
def rule(
    scoring: int,
    scale: float,
    sum_more: float,
    sum_least: float,
    correction: int,
    num_groups: int,
    num_kept: int,
    size: int,
    num_counted: int,
    /,
) -> object: ...
def gate_rows(kernels: object, y: int, num_rows: int, width: int, gate: int, /) -> None: ...
def route(
    kernels: object,
    gate: object,
    rule: object,
    x: int,
    num_tokens: int,
    num_places: int,
    logits: int,
    allowed: int,
    top_k: int,
    weights: int,
    ids: int,
    scratch: int,
    num_threads: int,
    /,
) -> None: ...
def experts_scratch_bytes(experts: object, num_pairs: int, /) -> int: ...
def tokens_scratch_bytes(experts: object, num_tokens: int, per_token: int, /) -> int: ...
def run_tokens(
    kernels: object,
    experts: object,
    x: int,
    num_tokens: int,
    top_k: int,
    num_slices: int,
    ids: int,
    weights: int,
    residual: int,
    out: int,
    scratch: int,
    num_threads: int,
    /,
) -> None: ...
def run_segments(
    kernels: object,
    experts: object,
    segments: tuple[tuple[int, int], ...],
    x: int,
    num_rows: int,
    num_pairs: int,
    row_index: int,
    weights: int,
    out: int,
    scratch: int,
    num_threads: int,
    /,
) -> None: ...
def rotate(
    kernels: object,
    rates: int,
    factor: float,
    dim: int,
    is_interleaved: int,
    x: int,
    num_rows: int,
    stride: int,
    num_heads: int,
    head_dim: int,
    positions: int,
    num_threads: int,
    /,
) -> None: ...
def attention(
    kernels: object,
    q: int,
    q_stride: int,
    k: int,
    k_stride: int,
    v: int,
    v_stride: int,
    keys: int,
    values: int,
    cache_is_bf16: int,
    num_blocks: int,
    block_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    value_width: int,
    scale: float,
    window: int,
    sinks: int,
    num_tokens: int,
    slots: int,
    sequences: int,
    lengths: int,
    block_table: int,
    num_sequences: int,
    table_stride: int,
    most_seen: int,
    scores: int,
    room: int,
    out: int,
    num_threads: int,
    /,
) -> None: ...
def pack(
    first: int, second: int, num_out: int, num_in: int, value_bytes: int, stride: int, out: int, /
) -> None: ...
def head_linear(
    kernels: object,
    matrix: object,
    num_heads: int,
    num_out: int,
    x: int,
    num_rows: int,
    stride: int,
    apart: int,
    y: int,
    scratch: int,
    num_threads: int,
    /,
) -> None: ...
def normalise_heads(
    kernels: object,
    norm: object,
    x: int,
    num_rows: int,
    num_heads: int,
    stride: int,
    num_threads: int,
    /,
) -> None: ...
def program(
    kernels: object, num_layers: int, widths: tuple[int, ...], instructions: tuple[tuple[Any, ...], ...], /
) -> object: ...
def program_times(program: object, is_timed: bool, /) -> tuple[float, ...]: ...
def paged_cache(
    block_size: int, num_blocks: tuple[int, ...], layers: tuple[tuple[int, ...], ...], /
) -> object: ...
def layer_tables(*experts: object | None) -> object: ...
def program_step(
    program: object,
    cache: object,
    experts: object | None,
    stops_at_routers: bool,
    num_threads: int,
    num_tokens: int,
    ids: int,
    positions: int,
    forced: int,
    forced_rows: int,
    num_routers: int,
    num_forced_rows: int,
    num_candidates: int,
    chosen: int,
    /,
    *groups: int,
) -> object: ...
def program_bytes(program: object, step: object, /) -> tuple[int, int]: ...
def buffer_offset(program: object, num_tokens: int, buffer: int, /) -> int: ...
def run_program(
    program: object, step: object, arena: int, scratch: int, stream: int, first: int, /
) -> int: ...
