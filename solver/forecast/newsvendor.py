"""How often capacity may be exceeded, from what capacity and its lack cost: the newsvendor's quantile.

It exists because "1 %" is a guess where prices are known. Minimising cost c + penalty E[(D - c mu)+] over the number of
replicas c gives P(D > c mu) = cost / (penalty mu) (Arrow, Harris and Marschak 1951): capacity is the quantile of
demand at tau = 1 - cost / (penalty mu). It forecasts nothing.
"""

from solver.domain.errors import InputError


def violations_from_cost(
    *, cost_usd_per_replica_h: float, penalty_usd_per_request: float, replica_rps: float
) -> float:
    """Return the probability 1 - tau with which capacity should be exceeded.

    ``penalty_usd_per_request`` is what a request above capacity costs, ``replica_rps`` (mu) what a replica sustains.

    Raises
    ------
    InputError
        If a figure is not positive, or a replica costs more than all the requests it could save: then none pays.
    """
    for name, value in (
        ("cost of a replica", cost_usd_per_replica_h),
        ("penalty", penalty_usd_per_request),
        ("rate of a replica", replica_rps),
    ):
        if not 0 < value < float("inf"):
            raise InputError(f"{name} {value:g}", right="a positive number")
    saved_usd_per_h = penalty_usd_per_request * replica_rps * 3600
    if cost_usd_per_replica_h >= saved_usd_per_h:
        raise InputError(
            f"a replica costs {cost_usd_per_replica_h:g} USD/h and saves at most {saved_usd_per_h:g} USD/h",
            right="a higher penalty, or no capacity at all",
        )
    return cost_usd_per_replica_h / saved_usd_per_h
