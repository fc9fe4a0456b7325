"""What an engine recorded of its routing: `ExpertRecording`, and the sums that turn routed tokens into counts.

It exists so that loads from any engine look alike to who builds a problem from them. Each engine's file has its own
module; nothing is guessed here: what a recording does not hold is None.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.moe import Floats, Slots

Sample = npt.NDArray[np.int32]
"""Expert ids, [tokens, L, k]."""

_TOKENS_AT_ONCE = 32_768


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertRecording:
    """Counts of routed tokens. Layers are MoE layers only; layer 0 of the arrays is the model's ``first_layer``."""

    source: str
    load: Floats
    """Routed tokens, [L, E]."""
    windows: Floats | None = None
    """The same by recorded step, [W, L, E]; the steps' sum is ``load``."""
    transitions: Floats | None = None
    """Pairs of experts of successive layers, k·k per token, [L - 1, E, E]; None unless tokens were recorded."""
    token_sample: Sample | None = None
    """Every recorded token, [tokens, L, k]."""
    top_k: int | None = None
    """Experts per token; None where the file does not say."""
    first_layer: int = 0
    """Index in the model of the first MoE layer."""
    decoder_layers: int | None = None
    """Layers that the engine counts, dense ones included; None where the file does not say."""
    physical_to_logical: Slots | None = None
    """The map in force at the recording's end, [L, S]."""

    @property
    def layers(self) -> int:
        """L."""
        return int(self.load.shape[0])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.load.shape[1])


def loads_of_sample(sample: Sample, experts: int) -> Floats:
    """Return how many of the tokens [tokens, L, k] go to each expert, [L, E]."""
    layers = sample.shape[1]
    counts = np.zeros(layers * experts, dtype=np.int64)
    offsets = (np.arange(layers, dtype=np.int64) * experts)[None, :, None]
    for start in range(0, sample.shape[0], _TOKENS_AT_ONCE):
        keys = sample[start : start + _TOKENS_AT_ONCE] + offsets
        counts += np.bincount(keys.ravel(), minlength=counts.size)
    return counts.reshape(layers, experts).astype(np.float64)


def counts_by_expert(slot_counts: Floats, p2l: npt.NDArray[np.integer], experts: int) -> Floats:
    """Add counts of slots, [..., L, S], up by the expert that a map [L, S] puts there, [..., L, E]."""
    layers = p2l.shape[0]
    keys = (np.arange(layers, dtype=np.int64)[:, None] * experts + p2l).ravel()
    parts = slot_counts.reshape(-1, keys.size)
    load = np.array([np.bincount(keys, weights=part, minlength=layers * experts) for part in parts])
    return load.reshape(*slot_counts.shape[:-1], experts)


def transitions_of(sample: Sample, experts: int) -> Floats:
    """Return pairs (expert e in layer l, expert f in layer l + 1) over the tokens [tokens, L, k], [L - 1, E, E].

    A token adds k·k pairs per step, so that rows sum to k times the load.
    """
    steps = max(0, sample.shape[1] - 1)
    pairs = np.zeros((steps, experts * experts), dtype=np.int64)
    for start in range(0, sample.shape[0], _TOKENS_AT_ONCE):
        some = sample[start : start + _TOKENS_AT_ONCE].astype(np.int64)
        for step in range(steps):
            keys = some[:, step, :, None] * experts + some[:, step + 1, None, :]
            pairs[step] += np.bincount(keys.ravel(), minlength=experts * experts)
    return pairs.reshape(steps, experts, experts).astype(np.float64)


def thinned(sample: Sample, tokens: int) -> Sample:
    """Return at most so many tokens of a sample, evenly spaced over the recording."""
    if sample.shape[0] <= tokens:
        return sample
    return sample[np.linspace(0, sample.shape[0] - 1, tokens).round().astype(np.int64)]
