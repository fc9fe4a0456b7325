"""Whether replicas survive the loss of some of them: the search over losses, without a solver.

It exists because plans of GPU mixes and of fleets are held against the same rule. How full the replicas left would be
is passed in.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from solver.check.game import Floats

MOST_LOSSES = 20_000


def unsurvived(
    model: str,
    counts: Sequence[int],
    survive: int,
    carried: Callable[[Floats], tuple[float, Floats]],
    *,
    tolerance: float,
) -> Iterator[str]:
    """Yield a sentence if there are ``survive`` replicas without which the others do not carry the full rate.

    The losses are searched as lower bounds l[c]: a routing with loads L covers every loss of at most n[c] - L[c]
    replicas each, so only losses that exceed this somewhere remain to be looked at.

    Parameters
    ----------
    counts
        [C] replicas, n.
    carried
        For replicas left [C], the largest use of any of them in some routing (at most 1 if there is one; infinite
        without any), and the replicas [C] that this routing takes, L.
    """
    if sum(counts) <= survive:
        yield f"{model}: {sum(counts)} replicas cannot survive the loss of {survive}"
        return
    open_losses = [tuple([0] * len(counts))]
    seen = set(open_losses)
    while open_losses:
        if len(seen) > MOST_LOSSES:
            yield f"{model}: more than {MOST_LOSSES} cases of loss; survival is not certified"
            return
        loss = open_losses.pop()
        left = np.array(counts, dtype=float) - np.array(loss)
        fullest, loads = carried(left)
        if fullest > 1 + tolerance:
            lost = ", ".join(f"{count} of configuration {c}" for c, count in enumerate(loss) if count)
            yield f"{model}: after the loss of {lost or 'none'} the others do not carry the full rate"
            return
        spare = left - loads
        for c, count in enumerate(counts):
            more = loss[c] + max(0, math.floor(spare[c] + tolerance)) + 1
            worse = (*loss[:c], more, *loss[c + 1 :])
            if more <= count and sum(worse) <= survive and worse not in seen:
                seen.add(worse)
                open_losses.append(worse)
