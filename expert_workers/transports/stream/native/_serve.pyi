"""The C functions of src/serve.c."""

def server() -> object: ...
def exchange(
    server: object,
    layer: int,
    kernels: object,
    num_threads: int,
    experts: object | None,
    slots: tuple[int, ...],
    /,
) -> None: ...
def answer(server: object, epochs: tuple[int, ...], /) -> None: ...
def serve(
    server: object, fd: int, buffer: memoryview, start: int, end: int, tick_ms: int, max_ticks: int, /
) -> tuple[int, int, int, int]: ...
def num_pairs(server: object, /) -> int: ...
