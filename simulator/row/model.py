"""How long prompts and tokens take on a server of the row, and how much of that a lower clock stretches.

It exists as the timing half of the plant; the watts are `solver.domain.power.ServerPowerModel`. Tables are piecewise
linear: constant below the first point, the last slope beyond the last.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RowPlant:
    """Timing of one server, seconds at the largest clock."""

    prompt_tokens: tuple[float, ...]
    prompt_s: tuple[float, ...]
    batch: tuple[float, ...]
    token_s: tuple[float, ...]
    max_batch: int
    prompt_clock_share: float
    """Share of a prompt's time that goes with F/f; the rest does not."""
    token_clock_share: float
    brake_prompt_share: float
    """The same at the brake's clock, where memory suffers too."""
    brake_token_share: float

    def __post_init__(self) -> None:
        """Refuse tables that are none."""
        for xs, ys in (("prompt_tokens", "prompt_s"), ("batch", "token_s")):
            x, y = np.asarray(getattr(self, xs), dtype=float), np.asarray(getattr(self, ys), dtype=float)
            if x.size < 2 or x.shape != y.shape:
                raise InputError(f"{y.size} values for {x.size} points", where=ys, right="two points or more")
            if not (np.isfinite(x).all() and (np.diff(x) > 0).all()):
                raise InputError("points do not rise", where=xs, right="they must rise")
            if not (np.isfinite(y).all() and (y > 0).all() and y[-1] >= y[-2]):
                raise InputError(
                    "times that are not above 0, or fall at the end",
                    where=ys,
                    right="above 0, rising at the end",
                )
        if self.max_batch < 1:
            raise InputError(f"{self.max_batch}", where="max_batch", right="it must be 1 or more")
        for name in (
            "prompt_clock_share",
            "token_clock_share",
            "brake_prompt_share",
            "brake_token_share",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{getattr(self, name):g}", where=name, right="it must be 0 to 1")

    def prompt_s_of(self, tokens: npt.NDArray[np.integer] | Floats) -> Floats:
        """Return the seconds of prompts."""
        return _piecewise(tokens, self.prompt_tokens, self.prompt_s)

    def token_s_of(self, batch: npt.NDArray[np.integer] | Floats) -> Floats:
        """Return the seconds between tokens of a batch."""
        return _piecewise(batch, self.batch, self.token_s)


def _piecewise(
    x: npt.NDArray[np.integer] | Floats, points: tuple[float, ...], values: tuple[float, ...]
) -> Floats:
    found = np.interp(x, points, values)
    slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
    beyond = np.asarray(x, dtype=np.float64) - points[-1]
    return np.where(beyond > 0.0, values[-1] + slope * beyond, found)


REFERENCE_PLANT = RowPlant(
    prompt_tokens=(128, 256, 512, 1024, 2048, 4096, 8192),
    prompt_s=(0.0797, 0.0992, 0.1744, 0.2892, 0.5404, 1.3488, 3.5932),
    batch=(1, 2, 4, 8, 16, 32, 64),
    token_s=(0.0493, 0.05, 0.051, 0.053, 0.0573, 0.0654, 0.0966),
    max_batch=16,
    prompt_clock_share=0.8,
    token_clock_share=0.2,
    brake_prompt_share=1.0,
    brake_token_share=0.5,
)
"""BLOOM-176B on 8 A100, after splitwise-sim's characterisation (power.md §3)."""
