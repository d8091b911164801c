"""Publisher: makes routes of what the workers hold, and gives them to the pool.

Belongs to the supervisor's thread.
"""

from collections.abc import Collection, Iterable, Mapping

from expert_workers.dispatch.routes import Routes
from expert_workers.supervision.actions import holders_of, note_surplus
from expert_workers.supervision.options import Published
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.layers.dispatch import ExpertKey


class Publisher:
    def __init__(self, pool: Published) -> None:
        self._pool = pool
        self._routes = Routes()
        # By rank, what the routes name.
        self.routed: Mapping[int, Keys] = {}

    def publish(
        self, holders: Collection[SupervisedWorker], wanted: Mapping[int, Keys], keys: Iterable[ExpertKey]
    ) -> None:
        """Routes to `keys`, where they are others than before; notes what each worker lacks and has in excess
        by these."""
        ranks_of = holders_of(holders, wanted, sorted(keys))
        addresses = {worker.rank: worker.address for worker in holders if worker.address is not None}
        if ranks_of != self._routes.holders or addresses != self._routes.addresses:
            self._routes = Routes(self._routes.version + 1, addresses, ranks_of)
            self.routed = {
                rank: frozenset(key for key, ranks in ranks_of.items() if rank in ranks) for rank in addresses
            }
            self._pool.publish(self._routes)
        for worker in holders:
            wish = wanted.get(worker.rank, frozenset())
            worker.note_wish(wish)
            note_surplus(worker, wish, self.routed.get(worker.rank, frozenset()), self._routes.version)
