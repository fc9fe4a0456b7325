"""What a power cap does to a replica: `capped` wraps a performance model.

It exists because a cap is the commonest order of a power manager, and its price in seconds differs by phase: prompts
are bound by arithmetic and slow down with the clock, decodes are bound by memory and hardly do. It is no controller: it
says where a capped card settles, not how it gets there (caps act over some 100 ms; shorter peaks pass).

A phase that draws W watts uncapped runs under a cap of C watts, both of all GPUs of the replica, at the clock ratio r
that meets it (W counts up to the TDPs: a card's own limit was there while its times were taken),

    P(r) = idle + (W - idle) r^1.13          r = min(1, ((C - idle) / (W - idle))^(1 / 1.13))

(the frequency-power law of POLCA's servers, arXiv 2308.12908, as fitted in the project's power reference). Seconds:

    Roofline   arithmetic, launch floors and hops take 1 / r as long; memory, links and the host's bookkeeping do not
    others     prefill (0.2 + 0.8 / r), decode (0.8 + 0.2 / r) times the uncapped seconds (same source)

Watts are min(W, C). All of it is monotone in the cap.
"""

import math
from dataclasses import dataclass, replace

from solver.domain.errors import InputError
from solver.domain.hardware import GpuType
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import REFERENCE_CLOCK_HZ, Roofline

CLOCK_POWER_EXPONENT = 1.13
PREFILL_CLOCK_SHARE, DECODE_CLOCK_SHARE = 0.8, 0.2
"""Share of a phase's seconds that the clock stretches, for models that do not tell arithmetic from memory."""
KNOWN_ERROR = (
    "caps: bloom-176b on H100 at 70 % of the GPUs' power takes x1.31 to x1.35 (prompts) and up to x1.04 (decodes), at"
    " half of it up to x1.85 and x1.14; Splitwise took x1.30 and x1.00 for half of it (70 % of the machine's power)"
)
"""tests/solver/test_capped.py holds these figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped:
    """`PerformanceModel` of a replica whose GPUs are capped; made by `capped`."""

    model: PerformanceModel
    """Uncapped."""
    cap_w: float
    """Of all GPUs."""
    tdp_w: float
    """Of all GPUs."""

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        return self.model.kind

    def _clock_ratio(self, uncapped_w: float) -> float:
        drawn_w = min(uncapped_w, self.tdp_w)
        if drawn_w <= self.cap_w:
            return 1.0
        idle_w = self.model.idle_w()
        return math.pow((self.cap_w - idle_w) / (drawn_w - idle_w), 1.0 / CLOCK_POWER_EXPONENT)

    def prefill_clock_ratio(self, new_tokens: float) -> float:
        """Clock over the uncapped clock while ``new_tokens`` prompt tokens are processed."""
        return self._clock_ratio(self.model.prefill_w(new_tokens))

    def decode_clock_ratio(self, sequences: float, kv_tokens: float) -> float:
        """Clock over the uncapped clock during a decode iteration."""
        return self._clock_ratio(self.model.decode_w(sequences, kv_tokens))

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds at the clock of the new tokens; cached context is taken not to change the watts."""
        ratio = self.prefill_clock_ratio(new_tokens)
        if isinstance(self.model, Roofline):
            return _slower(self.model, ratio).prefill_s(new_tokens, context_tokens=context_tokens)
        seconds = self.model.prefill_s(new_tokens, context_tokens=context_tokens)
        return seconds * stretched(ratio, PREFILL_CLOCK_SHARE)

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of a decode iteration at the clock that meets the cap."""
        ratio = self.decode_clock_ratio(sequences, kv_tokens)
        if isinstance(self.model, Roofline):
            return _slower(self.model, ratio).decode_iteration_s(sequences, kv_tokens)
        return self.model.decode_iteration_s(sequences, kv_tokens) * stretched(ratio, DECODE_CLOCK_SHARE)

    def prefill_w(self, new_tokens: float) -> float:
        """Watts of the model, never above the cap."""
        return min(self.model.prefill_w(new_tokens), self.cap_w)

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts of the model, never above the cap."""
        return min(self.model.decode_w(sequences, kv_tokens), self.cap_w)

    def idle_w(self) -> float:
        """Watts with nothing to do; a cap is always above them."""
        return self.model.idle_w()

    def kv_capacity_tokens(self) -> int:
        """As uncapped."""
        return self.model.kv_capacity_tokens()


def capped(model: PerformanceModel, cap_w_per_gpu: float, gpu: GpuType) -> Capped:
    """Cap the GPUs of a replica.

    Raises
    ------
    InputError
        If the card cannot be capped there, or its idle power is not known.
    """
    low_w, high_w = gpu.min_power_limit_w, gpu.max_power_limit_w
    if (low_w is not None and cap_w_per_gpu < low_w) or (high_w is not None and cap_w_per_gpu > high_w):
        ends = [f"at least {low_w:g} W"] if low_w is not None else []
        ends += [f"at most {high_w:g} W"] if high_w is not None else []
        raise InputError(
            f"{gpu.name} takes no power limit of {cap_w_per_gpu:g} W", right=f"{' and '.join(ends)} per GPU"
        )
    gpus = model.kind.gpus_per_replica
    idle_w = model.idle_w() / gpus
    if not cap_w_per_gpu > idle_w:
        raise InputError(
            f"a cap of {cap_w_per_gpu:g} W is not above the {idle_w:g} W that an idle {gpu.name} draws",
            right="a larger cap",
        )
    return Capped(model=model, cap_w=cap_w_per_gpu * gpus, tdp_w=gpu.tdp_w * gpus)


def stretched(clock_ratio: float, share: float) -> float:
    """Seconds over uncapped seconds, where ``share`` of them is bound by the clock."""
    return 1.0 if clock_ratio == 1.0 else 1.0 - share + share / clock_ratio


def _slower(model: Roofline, ratio: float) -> Roofline:
    """Return the same replica at a lower clock. What a sequence costs the host stays."""
    if ratio == 1.0:
        return model
    gpu = model.gpu
    clock_hz = REFERENCE_CLOCK_HZ if gpu.max_sm_hz is None else gpu.max_sm_hz

    def slowed(rate: float | None) -> float | None:
        return None if rate is None else rate * ratio

    return replace(
        model,
        gpu=replace(
            gpu,
            fp16_flops=gpu.fp16_flops * ratio,
            fp8_flops=slowed(gpu.fp8_flops),
            int8_ops=slowed(gpu.int8_ops),
            fp4_flops=slowed(gpu.fp4_flops),
            max_sm_hz=clock_hz * ratio,
        ),
        coefficients=replace(model.coefficients, sequence_s=model.coefficients.sequence_s * ratio),
    )
