"""The C functions of src/module.c."""

# (rank, id, when it began, deadline, (column, pairs) of each segment, bytes of the rows of its reply, what is
# unsent of the frame, what of the reply is read, when all of it was or 0)
_Call = tuple[int, int, float, float, tuple[tuple[int, int], ...], int, bytes, bytes, float]
# (number, start by time.time_ns(), start, when to hedge, calls)
_Flight = tuple[int, int, float, float | None, list[_Call]]

NUM_SIZES: int

def dispatcher(
    epoch: int,
    wire_is_bf16: bool,
    is_exact: bool,
    wants_records: bool,
    num_slices: int,
    split_rows: int,
    fixed_rows: float = 0.0,
    /,
) -> object: ...
def layer_experts(dispatcher: object, /) -> object: ...
def route(
    dispatcher: object,
    links: tuple[tuple[int, int], ...],
    tables: tuple[tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]], ...],
    /,
) -> None: ...
def pace(
    dispatcher: object,
    costs: tuple[float, ...],
    timeouts: tuple[float, ...],
    hedges: tuple[float, ...],
    until: float,
    /,
) -> None: ...
def stop(dispatcher: object, /) -> None: ...
def go(dispatcher: object, /) -> None: ...
def begin(
    dispatcher: object,
    table: int,
    num_tokens: int,
    width: int,
    num_places: int,
    rows: int,
    is_bf16: bool,
    weights: int,
    ids: int,
    /,
) -> int: ...
def finish(dispatcher: object, number: int, y: int, /) -> bool: ...
def num_flights(dispatcher: object, /) -> int: ...
def hand_over(dispatcher: object, /) -> list[_Flight]: ...
def take_samples(dispatcher: object, /) -> list[tuple[int, int, float]]: ...
def take_counts(
    dispatcher: object, /
) -> tuple[int, float, list[tuple[int, int, int, float]], list[tuple[int, int, int]]]: ...
def take_records(
    dispatcher: object, /
) -> list[tuple[int, int, float, float, int, int, dict[int, int], dict[int, float]]]: ...
