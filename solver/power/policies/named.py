"""All policies by name, with their usual settings.

It exists so that commands, resources and tests offer the same ones. `solver.power.policies.protocol` says what a policy
is.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from solver.domain.errors import InputError
from solver.power.policies.guard import Guard
from solver.power.policies.one_threshold import OneThreshold
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import Policy
from solver.power.policies.stepwise import Stepwise
from solver.power.policies.uncapped import Uncapped

_POLICIES: dict[str, Callable[[], Policy]] = {
    "none": Uncapped,
    "one-threshold-low": lambda: OneThreshold(everybody=False),
    "one-threshold-all": lambda: OneThreshold(everybody=True),
    "polca": Polca,
    "polca-trained": lambda: Polca(
        t1_ratio=0.90, t2_ratio=0.95, uncap_margin_ratio=0.03, label="polca-trained"
    ),
    "stepwise": Stepwise,
    "guard": Guard,
}
POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(_POLICIES)


def policy_of(name: str) -> Policy:
    """Return a policy with its usual settings.

    Raises
    ------
    InputError
        For a name nobody knows.
    """
    if name not in POLICIES:
        raise InputError(f"unknown policy {name!r}", where="policy", right=f"one of {', '.join(POLICIES)}")
    return POLICIES[name]()
