"""A pool to a supervisor's parts: keeps what it is given."""

from collections.abc import Mapping

from expert_workers.dispatch.routes import Routes
from moe_model.errors import WorldError
from moe_model.layers.dispatch import ExpertKey


class FakePool:
    adopted = 0

    def __init__(self) -> None:
        self.published: list[Routes] = []
        self.given_up: list[WorldError] = []

    def publish(self, routes: Routes) -> None:
        self.published.append(routes)

    def give_up(self, why: WorldError) -> None:
        self.given_up.append(why)

    def loads(self) -> Mapping[ExpertKey, int]:
        return {}

    def costs(self) -> Mapping[int, float]:
        return {}
