"""Where a mean step's time goes, and what it waits for most."""

from dataclasses import dataclass, fields


@dataclass
class Split:
    """Seconds of all steps so far. Of a layer's calls, the way of the one that is answered last: what the
    coordinator does to send and to take in (`calls`), the bytes on its link (`link`), the way there and back
    (`delay`), waiting for other calls at the worker (`queue`), the worker's own work (`experts`)."""

    step: float = 0.0
    shared: float = 0.0
    head: float = 0.0
    experts_here: float = 0.0
    calls: float = 0.0
    combine: float = 0.0
    link: float = 0.0
    delay: float = 0.0
    queue: float = 0.0
    experts: float = 0.0
    lost: float = 0.0

    def add(self, other: "Split") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def add_wait(self, way: "Split", waited: float) -> None:
        """Of a dispatch that was waited for so long: of what follows its sending only that much counts, as
        other parts of the step may have been computed meanwhile."""
        after = way.combine + way.link + way.delay + way.queue + way.experts + way.lost
        scale = min(1.0, waited / after) if after > 0 else 0.0
        self.calls += way.calls
        for name in ("combine", "link", "delay", "queue", "experts", "lost"):
            setattr(self, name, getattr(self, name) + scale * getattr(way, name))

    def shares(self) -> dict[str, float]:
        """Parts of the whole, which is 1."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        whole = sum(found.values()) or 1.0
        return {name: seconds / whole for name, seconds in found.items()}


# What a reader is told binds, by what is added up for it.
WORDS = {
    "experts": ("experts", "queue", "experts_here"),
    "shared part": ("shared", "head"),
    "calls": ("calls", "combine"),
    "link": ("link",),
    "delay": ("delay",),
    "engine": ("step",),
    "lost experts": ("lost",),
}


def binds(split: Split, front_share: float) -> str:
    """The largest part, and the next one where it is more than half as large. `front_share`: how much of the
    coordinator's cores the front has."""
    shares = split.shares()
    sums = {word: sum(shares[name] for name in names) for word, names in WORDS.items()}
    sums["front"] = front_share
    first, second, *_ = sorted(sums, key=lambda word: -sums[word])
    return f"{first}, {second}" if sums[second] > sums[first] / 2 else first
