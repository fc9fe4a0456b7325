"""What models of times alone say of watts and cache: what the roofline of the same replica says.

It exists because fits of step times (`solver.performance.fitted`, `solver.performance.trained_physics`) say nothing of
power. It tells no time.
"""

from dataclasses import dataclass

from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineWatts:
    """The part of a `PerformanceModel` that is the roofline's."""

    roofline: Roofline

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        return self.roofline.kind

    def prefill_w(self, new_tokens: float) -> float:
        """Watts as the roofline says."""
        return self.roofline.prefill_w(new_tokens)

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts as the roofline says."""
        return self.roofline.decode_w(sequences, kv_tokens)

    def idle_w(self) -> float:
        """Watts as the roofline says."""
        return self.roofline.idle_w()

    def kv_capacity_tokens(self) -> int:
        """Tokens of cache as the roofline says."""
        return self.roofline.kv_capacity_tokens()
