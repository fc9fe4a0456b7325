"""What is known of a GPU type: `GpuType`, one entry of the GPU catalogue in SI units.

It exists so that performance models, planners and reports speak of the same card. It is neither a device that
was found in a cluster nor an offer (stock and reservations are `solver.domain.gpu_mix.GpuOffer`), and it
reads no file (`telemetry.catalogue.read` does). A fact nobody knows is None, never zero.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from solver.domain.errors import InputError


class Precision(StrEnum):
    """How the weights of a replica are stored; it decides bytes per weight and the arithmetic rate.

    Activations and KV cache are not meant: a KV cache has 2 bytes per element unless a model is told
    otherwise.
    """

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"
    """Four-bit floats in weights and activations (nvfp4): uses fp4 units."""
    MXFP4 = "mxfp4"
    """Four-bit floats with shared scales in the experts, the rest bf16: weight-only, 16-bit arithmetic."""
    INT4 = "int4"
    """Weight-only quantisation in groups (AWQ, GPTQ): 16-bit arithmetic."""


_SPELLINGS = {
    "bfloat16": Precision.BF16,
    "float16": Precision.FP16,
    "half": Precision.FP16,
    "float8": Precision.FP8,
    "fp8_e4m3": Precision.FP8,
    "nvfp4": Precision.FP4,
    "w4a16": Precision.INT4,
    "awq": Precision.INT4,
    "gptq": Precision.INT4,
    "w8a8": Precision.INT8,
}


def parse_precision(text: str) -> Precision:
    """Read the name of a precision; `InputError` for a name nobody knows."""
    name = text.strip().lower()
    if name in _SPELLINGS:
        return _SPELLINGS[name]
    try:
        return Precision(name)
    except ValueError:
        raise InputError(
            f"unknown precision {text!r}", right=f"one of {', '.join(member.value for member in Precision)}"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the facts of a catalogue entry come from."""

    sources: tuple[str, ...] = ()
    """One line per source: which source gave which fields."""
    date: str | None = None
    """When the sources were read (ISO date)."""
    recalled: frozenset[str] = frozenset()
    """Fields known only from memory, without a source at hand: check before leaning on them."""
    notes: str | None = None
    """Conditions, and where sources disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One GPU type. Rates are peaks of dense arithmetic (no 2:4 sparsity), links count one direction."""

    name: str
    vendor: str
    product_labels: tuple[str, ...] = ()
    """Values of the node label ``nvidia.com/gpu.product`` (AMD: ``amd.com/gpu.product-name``)."""
    memory_bytes: float
    """What the driver offers one process before any context."""
    memory_marketed_gb: float | None = None
    """The number in the product's name, for telling cards apart only."""
    memory_bandwidth_bytes_per_s: float
    fp16_flops: float
    """Matrix FLOP/s of 16-bit floats."""
    has_bf16: bool = True
    """False: the 16-bit rate is fp16 only."""
    fp8_flops: float | None = None
    int8_ops: float | None = None
    fp4_flops: float | None = None
    tdp_w: float
    idle_w: float | None = None
    idle_kind: Literal["measured", "assumed"] | None = None
    min_power_limit_w: float | None = None
    max_power_limit_w: float | None = None
    max_sm_hz: float | None = None
    interconnect_kind: str | None = None
    """``nvlink-switch``, ``nvlink-bridge`` (pairs), ``xgmi`` (full mesh) or ``pcie``."""
    interconnect_bytes_per_s: float | None = None
    interconnect_domain_gpus: int | None = None
    """How many GPUs the fast link joins; 1: none."""
    pcie_bytes_per_s: float | None = None
    gpus_per_node: int | None = None
    """The usual number, not a limit."""
    price_usd_per_h: float | None = None
    """Per GPU, without commitment; an example to be replaced by the user's own."""
    price_mark: Literal["listed", "illustrative"] | None = None
    price_date: str | None = None
    price_from: str | None = None
    provenance: Provenance = Provenance()

    def flops(self, precision: Precision) -> float:
        """Peak arithmetic rate, FLOP/s (int8: OP/s), that a replica with such weights computes at.

        Units of the precision count only where they exist and beat the 16-bit rate; otherwise the weights are
        widened on the way in and the 16-bit rate holds (weight-only quantisation: the bytes shrink, the
        arithmetic stays). So fp8 weights run on an A100 at its bf16 rate, and int8 on a B300 too.

        Raises
        ------
        InputError
            For bf16 on a card that has no bf16 units: engines refuse that.
        """
        if precision is Precision.BF16 and not self.has_bf16:
            raise InputError(f"{self.name} has no bf16 units", right="precision fp16")
        own = {
            Precision.FP8: self.fp8_flops,
            Precision.INT8: self.int8_ops,
            Precision.FP4: self.fp4_flops,
        }.get(precision)
        return self.fp16_flops if own is None else max(own, self.fp16_flops)

    def link_bytes_per_s(self, gpus: int) -> float | None:
        """Bandwidth between the GPUs of a replica: the fast link in its domain, PCIe beyond; None: not known."""
        if self.interconnect_domain_gpus is not None and gpus <= self.interconnect_domain_gpus:
            return self.interconnect_bytes_per_s
        return self.pcie_bytes_per_s if self.pcie_bytes_per_s is not None else self.interconnect_bytes_per_s
