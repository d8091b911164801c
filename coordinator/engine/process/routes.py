"""Routes: to which front each output of an engine goes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coordinator.engine.client.request_streams import id_of
from coordinator.engine.messages.output import Output
from coordinator.engine.process.front_link import FrontLink, Said


@dataclass(slots=True, eq=False)
class _Route:
    """`number` is the front's own for the request; `num_open` of its sequences have not ended."""

    link: FrontLink
    number: int
    num_open: int


class Routes:
    """By the engine's keys of requests. Any thread may ask and change."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._routes

    def add(self, key: str, link: FrontLink, number: int, num_sequences: int) -> None:
        self._routes[key] = _Route(link, number, num_sequences)

    def sort(self, outputs: Sequence[Output]) -> dict[FrontLink, Said]:
        """What each front is told. A request's last output ends its route; others have none any more."""
        sorted_: dict[FrontLink, Said] = {}
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                continue
            said = sorted_.get(route.link)
            if said is None:
                said = sorted_[route.link] = Said()
            said.add(route.number, output)
            if output.is_last:
                route.num_open -= 1
                if not route.num_open or output.failure is not None:
                    self._routes.pop(output.request_id, None)
        return sorted_

    def keys_of(self, link: FrontLink, numbers: Collection[int] | None = None) -> list[str]:
        """The requests of a front; with `numbers`, those of them."""
        return [
            key
            for key, route in tuple(self._routes.items())
            if route.link is link and (numbers is None or route.number in numbers)
        ]

    def named(self, request_ids: Collection[str] | None) -> dict[str, list[tuple[FrontLink, str]]]:
        """By their ids, the requests of all fronts, or those of them: front and key, one for each prompt."""
        found: dict[str, list[tuple[FrontLink, str]]] = {}
        for key, route in tuple(self._routes.items()):
            request_id = id_of(key)
            if request_ids is None or request_id in request_ids:
                found.setdefault(request_id, []).append((route.link, key))
        return found

    def all_keys(self) -> list[str]:
        return list(self._routes)

    def remove(self, key: str) -> None:
        """Nothing happens when it has ended meanwhile."""
        self._routes.pop(key, None)
