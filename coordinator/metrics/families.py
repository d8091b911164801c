"""What a metric is: its name, what it says, its labels, and the edges of its buckets. Knows no Prometheus."""

from collections.abc import Sequence
from dataclasses import dataclass

PREFIX = "expertmesh_"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, a counter, or with `edges` a histogram: those are the upper ends of its buckets but the
    last, which has none. `is_of_model`: its first label is the model's name, which is not among `labels`."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    is_of_model: bool = True

    @property
    def num_values(self) -> int:
        """Of one series: a counter's one; of a histogram the count of each bucket, and the sum."""
        return len(self.edges) + 2 if self.edges else 1


def ours(stem: str, text: str, *labels: str, edges: Sequence[float] = ()) -> Family:
    """A metric of the model."""
    return Family(f"{PREFIX}{stem}", text, labels, tuple(edges))
