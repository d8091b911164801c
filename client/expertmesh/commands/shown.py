"""Generated text on the terminal, the same for `expertmesh generate` and `expertmesh client`."""


class Shown:
    """Prints one sequence as it comes. Several come interleaved: each is printed when it is complete."""

    def __init__(self, num_sequences: int) -> None:
        self._is_single = num_sequences == 1
        self._texts: dict[int, list[str]] = {}

    def show(self, index: int, text: str) -> None:
        if self._is_single:
            print(text, end="", flush=True)
        else:
            self._texts.setdefault(index, []).append(text)

    def end(self, index: int) -> None:
        if self._is_single:
            print(flush=True)
        else:
            print(f"--- {index}\n{''.join(self._texts.pop(index, []))}", flush=True)
