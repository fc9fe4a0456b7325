"""The breaker's equations: how θ moves, when it trips, and how warm it can get before an order answers a jump.

It exists so that policies, controller, simulator and admission share one form of the safety invariant (power.md §5).
It holds no state; `solver.power.row_control` keeps θ.
"""

import math

from solver.domain.power import BreakerCurve


def theta_after(theta: float, draw_ratio: float, seconds: float, tau_s: float) -> float:
    """Return θ after a constant draw: u² + (θ - u²) e^(-t/τ)."""
    steady = draw_ratio * draw_ratio
    return steady + (theta - steady) * math.exp(-seconds / tau_s)


def trip_s(theta: float, draw_ratio: float, curve: BreakerCurve) -> float:
    """Return the seconds until a constant draw trips: τ ln((u² - θ)/(u² - K²)); infinite if it never does."""
    trip, steady = curve.trip_theta, draw_ratio * draw_ratio
    if theta >= trip:
        return 0.0
    if steady <= trip:
        return math.inf
    return curve.tau_s * math.log((steady - theta) / (steady - trip))


def worst_theta(theta: float, worst_ratio: float, recourse_s: float, curve: BreakerCurve) -> float:
    """Return θ_w: the warmest the breaker gets if the draw jumps at once to its worst case until the recourse acts.

    Parameters
    ----------
    theta
        θ at the decision.
    worst_ratio
        u_w, the sum of Pmax at the highest clocks in force or ordered, of the budget.
    recourse_s
        R; infinite when nothing the policy can do brings the worst case below the budget.
    """
    steady = worst_ratio * worst_ratio
    if math.isinf(recourse_s):
        return max(theta, steady)
    return max(theta, steady + (theta - steady) * math.exp(-recourse_s / curve.tau_s))


def largest_ratio(theta: float, recourse_s: float, curve: BreakerCurve) -> float:
    """Return the largest u_w for which θ_w stays at or below K²: what standing caps must keep the worst case to."""
    if theta >= curve.trip_theta:
        return 0.0
    left = math.exp(-recourse_s / curve.tau_s)
    return math.sqrt((curve.trip_theta - theta * left) / (1.0 - left)) if left < 1.0 else math.inf
