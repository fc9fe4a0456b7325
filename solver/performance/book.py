"""Finds the performance model of a replica: a measured table where one exists, the roofline otherwise.

It exists so that planner, simulator and reports ask one place and always learn where an answer comes from. It
reads no file: catalogues and tables are passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from solver.domain.errors import InputError
from solver.domain.hardware import GpuType, Precision, parse_precision
from solver.domain.llm import ModelShape
from solver.performance.profile_table import ProfileTable
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import DEFAULT_COEFFICIENTS, Roofline, RooflineCoefficients

_SIXTEEN_BIT = (Precision.BF16, Precision.FP16)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceEntry:
    """A performance model and where it comes from, in one line for people."""

    performance: PerformanceModel
    measured: bool
    """True: times come from a profile table (what it lacks, from the roofline)."""
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceBook:
    """Catalogues, tables, coefficients; `entry` picks. Names are the catalogues' own (readers know aliases)."""

    gpus: Mapping[str, GpuType]
    models: Mapping[str, ModelShape]
    tables: tuple[ProfileTable, ...] = ()
    coefficients: RooflineCoefficients = DEFAULT_COEFFICIENTS
    extrapolate_tables: bool = False
    """Let tables answer outside their points; otherwise they raise `OutsideRangeError` there."""
    _index: dict[ReplicaKind, ProfileTable] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for table in self.tables:
            if table.kind in self._index:
                raise InputError(
                    f"two profiles of {table.kind}",
                    right="one profile per replica kind",
                )
            self._index[table.kind] = table

    def entry(self, kind: ReplicaKind) -> PerformanceEntry:
        """Find the model of a replica kind.

        bf16 and fp16 weights share a table, as they have the same bytes and rates.

        Raises
        ------
        InputError
            For a GPU type or model that no catalogue has, or a precision the card cannot run.
        """
        if kind.gpu_type not in self.gpus:
            raise InputError(f"unknown GPU type {kind.gpu_type!r}", right="a name of the GPU catalogue")
        if kind.model not in self.models:
            raise InputError(f"unknown model {kind.model!r}", right="a name of the model catalogue")
        roofline = Roofline.of(kind, self.gpus[kind.gpu_type], self.models[kind.model], self.coefficients)
        table = self._table(kind)
        if table is None:
            clock = "" if roofline.gpu.max_sm_hz is not None else "; clock not known, floors as on an H100"
            return PerformanceEntry(
                performance=roofline,
                measured=False,
                provenance=f"roofline ({self.coefficients.provenance}){clock}",
            )
        filled = replace(
            table,
            fallback=roofline if table.fallback is None else table.fallback,
            extrapolate=table.extrapolate or self.extrapolate_tables,
        )
        return PerformanceEntry(
            performance=filled,
            measured=True,
            provenance=f"measured: {table.provenance}; the rest, roofline ({self.coefficients.provenance})",
        )

    def performance(self, kind: ReplicaKind) -> PerformanceModel:
        """Find only the model; raises as `entry` does."""
        return self.entry(kind).performance

    def _table(self, kind: ReplicaKind) -> ProfileTable | None:
        precision = parse_precision(kind.precision)
        same = _SIXTEEN_BIT if precision in _SIXTEEN_BIT else (precision,)
        for candidate in (precision, *same):
            table = self._index.get(replace(kind, precision=candidate.value))
            if table is not None:
                return table
        return None
