"""From a scenario to a simulated run: looks names up, reads the trace, runs the engine, judges the record.

It exists so that the command, searches, sweeps and reports all run a scenario in the same way. It holds no rule of the
simulation (`simulator`) and prints nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.fleet import Role
from simulator.metrics import ClusterFigures
from simulator.record import RunRecord
from simulator.scenario import Scenario
from solver.domain.trace import Ints, Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInUse:
    """A pool as it was simulated, with names and sources; in the order of `RunRecord.pool_of_instance`."""

    name: str
    model: str
    """As the scenario calls it."""
    role: Role
    gpu_type: str
    gpus_per_instance: int
    count: int
    step_model: str
    """Kind of the step model."""
    provenance: str
    """Where the times come from, in one line."""
    known_error: str
    """How far off they are known to be, in one line."""
    price_usd_per_h: float | None
    """Of one instance; None: not known."""
    kv_capacity_tokens: int
    """Of one instance."""
    idle_w: float
    """Of one instance."""
    power_cap_w_per_gpu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedCluster:
    """A finished run of a scenario with everything that outputs tell about it."""

    scenario: Scenario
    pools: tuple[PoolInUse, ...]
    models: tuple[str, ...]
    """As the scenario calls them."""
    requests: Requests
    """As simulated: cut and scaled."""
    model_of_request: Ints
    """Index into ``models``."""
    record: RunRecord
    figures: ClusterFigures
    trace_name: str
    trace_sha256: str
    dropped_rows: Mapping[str, int]
    """Rows of the trace that were left out, by reason."""
    seed: int
    step_model: str
    """Kind of the step model; several joined by commas where pools differ."""
    known_error: str
    definitions: Mapping[str, str]
    """What the figures mean, in words, by figure."""
    tbt_per_output_token: bool
    """True: TBT divides by output tokens (splitwise-compat), else by the gaps between them."""
    wall_s: float
    """Seconds that reading, preparing, compiling and simulating took."""
    engine_s: float
    """Seconds of the engine alone, compiling included."""
    command: str
    """The command that was called, or empty."""
