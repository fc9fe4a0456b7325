"""The machines, models and designs of the phase-splitting peer as values, with its measured step times.

It exists so that `splitwise-compat` runs are described by the same facts as the peer's own. Machines, prices, power
units and step times are those of SplitwiseSim (MIT, (c) 2024 Pratyush Patel; commit 8f99e7dc): medians of its measured
runs at tensor parallelism 8, in seconds at full precision, because rounded medians do not reproduce its results. The
other step models do not read these tables.
"""

from dataclasses import dataclass
from enum import StrEnum

STEP_KNOTS_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

KNOWN_ERROR = (
    "exact agreement with SplitwiseSim; against its own table the prompt time is off by 3.5 % in the mean; decode is"
    " charged by the number of sequences whatever their context: 1.8 times (H100) and 2 times (A100) too fast at a"
    " batch of 64 with 512 tokens each"
)


class SplitwiseScheduler(StrEnum):
    """How requests find machines."""

    TOKEN_JSQ = "token_jsq"  # noqa: S105 - a scheduler, not a secret
    """One pool; the machine with the fewest pending tokens serves both phases."""
    MIXED_POOL = "mixed_pool"
    """Prompt, mixed and token machines; machines change over when their kind is full."""


class SplitwiseRole(StrEnum):
    """The list of the router that a machine belongs to; ``token_jsq`` knows only one list and does not ask."""

    PROMPT = "prompt"
    TOKEN = "token"  # noqa: S105 - a phase, not a secret
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitwiseModel:
    """A model as the peer knows it: without grouped-query attention in its KV size."""

    name: str
    weights_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of one iteration at `STEP_KNOTS_TOKENS`, linear between them and beyond both ends."""

    prompt_s: tuple[float, ...]
    token_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitwiseMachine:
    """One kind of machine; an instance takes all of it (tensor parallelism 8)."""

    name: str
    gpu: str
    """Its name in the peer's tables."""
    step_times: dict[str, StepTimes]
    """By model."""
    cost_usd_per_gpu_h: float
    power_units: float
    """Relative power of the whole machine, as the peer's designs count it."""
    idle_w_per_gpu: float
    prompt_w_per_gpu: float
    token_w_per_gpu: float
    gpus: int = 8
    memory_bytes: int = 8 * 85_899_345_920

    @property
    def cost_usd_per_h(self) -> float:
        """Price of the whole machine."""
        return self.gpus * self.cost_usd_per_gpu_h


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitwiseGroup:
    """Machines of one kind and role."""

    machine: SplitwiseMachine
    count: int
    role: SplitwiseRole = SplitwiseRole.MIXED


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitwiseFleet:
    """A design: machines in the order of their creation, which decides ties, and the peer's settings."""

    model: SplitwiseModel
    groups: tuple[SplitwiseGroup, ...]
    scheduler: SplitwiseScheduler
    max_batch: int = 512
    max_batch_tokens: int = 2048
    max_preemptions: int = 4
    """Tasks passed over at so many starts of iterations go first."""
    prompt_limit_tokens: int = 8192
    link_bytes_per_s: float = 200 * 2.0**30

    @property
    def machines(self) -> int:
        """Number of machines of all groups."""
        return sum(group.count for group in self.groups)

    @property
    def cost_usd_per_h(self) -> float:
        """Price of all machines."""
        return sum(group.count * group.machine.cost_usd_per_h for group in self.groups)

    @property
    def power_units(self) -> float:
        """Relative power of all machines."""
        return sum(group.count * group.machine.power_units for group in self.groups)


MODELS = {
    model.name: model
    for model in (
        SplitwiseModel(name="bloom-176b", weights_bytes=329_000_000_000, kv_bytes_per_token=4_014_080),
        SplitwiseModel(name="llama2-70b", weights_bytes=135_000_000_000, kv_bytes_per_token=2_621_440),
    )
}

_BLOOM_A100 = StepTimes(
    prompt_s=(
        0.07966843713074923,
        0.09916399419307707,
        0.17438230104744434,
        0.2874673455953598,
        0.5360554573126137,
        1.3326430150773376,
        3.591468118596822,
        5.782002554042265,
        11.25182795501314,
    ),
    token_s=(
        0.047612100487618936,
        0.047706697895154956,
        0.049312983617212064,
        0.049442481044239886,
        0.05018820409116694,
        0.05163132658275944,
        0.05427385195924747,
        0.06538046831925085,
        0.09658297453273645,
    ),
)
_BLOOM_H100 = StepTimes(
    prompt_s=(
        0.04828443902079016,
        0.05117948295082897,
        0.07614180399104953,
        0.1322169970080722,
        0.25196400948334485,
        0.6495982770284172,
        1.4115745809976943,
        2.5219093060004525,
        4.99645071401028,
    ),
    token_s=(
        0.03573924211114205,
        0.03615448040398219,
        0.036166175006905436,
        0.03633388049151624,
        0.03673894313809381,
        0.03752989886950987,
        0.039016441875421554,
        0.045841567142679555,
        0.06382134215911762,
    ),
)
# Derived by the peer, not measured: 1.3 times the H100's prompt time, its token time as it is.
_BLOOM_H100_CAPPED = StepTimes(
    prompt_s=(
        0.0627697707270272,
        0.06653332783607765,
        0.09898434518836438,
        0.17188209611049388,
        0.32755321232834833,
        0.8444777601369424,
        1.8350469552970028,
        3.2784820978005884,
        6.495385928213364,
    ),
    token_s=_BLOOM_H100.token_s,
)
_LLAMA_A100 = StepTimes(
    prompt_s=(
        0.06534724007360637,
        0.06675650901161134,
        0.0930164810270071,
        0.1608600309700705,
        0.2827095299726352,
        0.7083550450042821,
        1.7809667804976925,
        3.52454145392403,
        7.553992661996745,
    ),
    token_s=(
        0.04303125888805866,
        0.043483437884114975,
        0.045033139639275174,
        0.0445615851808904,
        0.0456972767023267,
        0.04647336346757283,
        0.04847078598617745,
        0.05301698394519401,
        0.0716051476655572,
    ),
)
_LLAMA_H100 = StepTimes(
    prompt_s=(
        0.05818541598273441,
        0.051658510987181216,
        0.05385797604685649,
        0.07768386948737316,
        0.13442320300964639,
        0.3762156415032223,
        0.8314855720091145,
        1.5517261609784327,
        2.9363297179806978,
    ),
    token_s=(
        0.02987266007185672,
        0.028266553230323337,
        0.03056174722271708,
        0.02997299270359726,
        0.03163489250889723,
        0.03132911609342977,
        0.03259232873922052,
        0.03861935059888303,
        0.05016084560871447,
    ),
)
_LLAMA_H100_CAPPED = StepTimes(
    prompt_s=tuple(1.3 * seconds for seconds in _LLAMA_H100.prompt_s),
    token_s=_LLAMA_H100.token_s,
)

# Watts per GPU: SplitwiseSim's constant power model, which it declares and does not use. The capped H100 runs at 70 %
# of its machine's power: 0.7 of the 700 W of prompts; its token phase stays below that.
_CAP_RATIO = 0.7

MACHINES = {
    machine.name: machine
    for machine in (
        SplitwiseMachine(
            name="dgx-a100",
            gpu="a100-80gb",
            step_times={"bloom-176b": _BLOOM_A100, "llama2-70b": _LLAMA_A100},
            cost_usd_per_gpu_h=2.21,
            power_units=24.8,
            idle_w_per_gpu=63.0,
            prompt_w_per_gpu=400.0,
            token_w_per_gpu=250.0,
        ),
        SplitwiseMachine(
            name="dgx-h100",
            gpu="h100-80gb",
            step_times={"bloom-176b": _BLOOM_H100, "llama2-70b": _LLAMA_H100},
            cost_usd_per_gpu_h=4.76,
            power_units=44.0,
            idle_w_per_gpu=75.0,
            prompt_w_per_gpu=700.0,
            token_w_per_gpu=380.0,
        ),
        SplitwiseMachine(
            name="dgx-h100-pcap",
            gpu="h100-80gb-pcap",
            step_times={"bloom-176b": _BLOOM_H100_CAPPED, "llama2-70b": _LLAMA_H100_CAPPED},
            cost_usd_per_gpu_h=4.76,
            power_units=30.8,
            idle_w_per_gpu=75.0,
            prompt_w_per_gpu=_CAP_RATIO * 700.0,
            token_w_per_gpu=380.0,
        ),
    )
}
