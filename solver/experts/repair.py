"""Few changes to a map in force: what drift calls for, at several prices of a fetched expert.

It exists because a map from scratch moves nearly everything for a percent, and moving stops the engine. The same local
search runs from the map in force with a price on every expert that a GPU does not hold yet; a price between nothing
and the true one is tried too, since the slowest GPU alone decides how long a move takes. It judges nothing: who calls
compares net gains.
"""

import math
from collections.abc import Iterator

import numpy as np

from solver.domain.deadline import Deadline
from solver.domain.moe import Communication, ExpertInstance, Slots
from solver.experts.duplicates import without_duplicates
from solver.experts.search import Field, Stage, held_by

PRICES = (10.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.2, 0.0)
"""In units of the true price of one more expert on every GPU."""
REPAIR = (
    Stage(mean_weight=0.3, square_weight=0.3, replica_ratio=0.3, tries=4000, passes=2),
    Stage(mean_weight=0.0, square_weight=0.1, replica_ratio=0.3, tries=4000, passes=1),
)


def repairs(
    instance: ExpertInstance,
    communication: Communication,
    previous: Slots,
    *,
    max_moved_ratio: float | None,
    full: bool,
    seed: int,
    deadline: Deadline,
) -> Iterator[Slots]:
    """Yield maps close to ``previous``, dearer fetches first; none moves more than ``max_moved_ratio``."""
    start = without_duplicates(instance, previous)
    original = held_by(instance, previous)
    most = math.inf if max_moved_ratio is None else max_moved_ratio * instance.layers * instance.slots
    fetched = int((held_by(instance, start) > original).sum())
    if fetched > most:
        start, fetched = previous.copy(), 0
    for price in PRICES:
        if deadline.passed():
            return
        field = Field(instance, communication)
        field.original = original
        field.fetch_s = price * fetch_price_s(instance)
        field.room = np.array([int(min(most - fetched, 2**62))], dtype=np.int64)
        chance = np.array([1 + seed % 2147483645], dtype=np.int64)
        p2l = start.copy()
        field.run(p2l, REPAIR * (3 if full else 1), chance, deadline)
        yield p2l


def fetch_price_s(instance: ExpertInstance) -> float:
    """Return seconds per window that one fetched expert costs if GPUs fetch alike; a guess without migration costs."""
    migration = instance.migration
    if migration is None or not migration.windows:
        per_layer_s = instance.costs.token_expert_s * float(instance.load.sum()) / instance.topology.gpus
        return 0.01 * per_layer_s / (instance.layers * instance.slots)
    seconds = migration.expert_bytes / migration.bytes_per_s * (1.0 + migration.margin_ratio)
    return seconds / migration.windows / instance.topology.gpus
