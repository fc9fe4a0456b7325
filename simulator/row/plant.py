"""The servers of a row, second by second: prompts, decoding, watts and the breaker, for given clocks.

It exists to hold the arrays of `simulator.row.kernel`, whose loop advances all servers over a span of whole seconds by
the rule of the reference plant (docs/power.md). It orders nothing and knows no policy; `simulator.row.run` does.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.row.kernel.seconds import Floats, advance
from simulator.row.model import RowPlant
from simulator.row.requests import RowRequests
from solver.domain.power import BreakerCurve, PowerRow

SPAN_S = 16
"""Longest span of one call: so many seconds of each server's watts are kept."""


@dataclass(kw_only=True)
class Plant:
    """The state of a row between calls. Arrays are its own; by second they reach to the end of the draining."""

    row: PowerRow
    model: RowPlant
    requests: RowRequests
    seconds: int
    """The most that can be run."""
    start_theta: float

    def __post_init__(self) -> None:
        """Lay the arrays out."""
        servers = self.row.servers
        order = self.requests.by_server(servers)
        ends = np.searchsorted(self.requests.server[order], np.arange(servers + 1))
        self.order = order
        """Requests of this row, by server and arrival: indices into ``requests``."""
        self._arrival_s = self.requests.arrival_s[order]
        self._prompt_s = self.model.prompt_s_of(self.requests.prompt_tokens[order])
        self._output = self.requests.output_tokens[order].astype(np.float64)
        self.finish_s: Floats = np.full(order.size, np.nan)
        """By request of ``order``: its completion; NaN while it is not complete."""
        self._next, self._end = ends[:-1].astype(np.int64), ends[1:].astype(np.int64)
        places = self.model.max_batch
        self._prompt = np.full(servers, -1, dtype=np.int64)
        self._prompt_left_s = np.zeros(servers)
        self._batch = np.zeros(servers, dtype=np.int64)
        self._left = np.zeros((servers, places))
        self._member = np.zeros((servers, places), dtype=np.int64)
        self._prompt_factor = np.ones(servers)
        self._token_factor = np.ones(servers)
        self._watt_factor = np.ones(servers)
        self._stopped_w = np.full(servers, -1.0)
        self._done = np.zeros(1, dtype=np.int64)
        server = self.row.server
        self._token_s = self.model.token_s_of(np.arange(places + 1, dtype=np.float64))
        filled = np.minimum(1.0, np.arange(places + 1) / server.full_batch)
        ratio = server.token_tdp_ratio_at_0 + filled * (
            server.token_tdp_ratio_at_full - server.token_tdp_ratio_at_0
        )
        self._token_above_w = ratio * server.gpu_tdp_w - server.gpu_idle_w
        self._constants = np.array(
            [
                server.gpu_idle_w,
                server.prompt_tdp_ratio * server.gpu_tdp_w - server.gpu_idle_w,
                server.fixed_w,
                server.draw_per_gpu_watt_ratio * server.gpus,
            ]
        )
        self._breaker = np.zeros(5)
        self._breaker[3] = self.start_theta
        self.set_breaker(self.row.curve, self.row.budget_w)
        self.row_w = np.zeros(self.seconds)
        self.low_w = np.zeros(self.seconds)
        self.high_w = np.zeros(self.seconds)
        self.theta_after = np.zeros(self.seconds)
        self._recent_w = np.zeros((SPAN_S, servers))
        self._is_low = np.array(self.row.is_low)
        self.now_s = 0
        self.mhz = np.full(servers, server.max_mhz, dtype=np.int64)
        """In force by server, under the brake if there is one."""
        self.braked = False

    def set_breaker(self, curve: BreakerCurve, budget_w: float) -> None:
        """Scale the breaker's rating; θ stays."""
        self._breaker[0] = budget_w
        self._breaker[1] = math.exp(-1.0 / curve.tau_s)
        self._breaker[2] = curve.trip_theta

    def set_clocks(self, mhz: npt.NDArray[np.int64], *, braked: bool) -> None:
        """Let clocks by server, or the brake, act from the next second on."""
        self.mhz[:] = mhz
        self.braked = braked
        server = self.row.server
        if braked:
            slower = server.max_mhz / server.brake_mhz
            prompt, token = self.model.brake_prompt_share, self.model.brake_token_share
            self._prompt_factor[:] = (1.0 - prompt) + prompt * slower
            self._token_factor[:] = (1.0 - token) + token * slower
            self._watt_factor[:] = (server.brake_mhz / server.max_mhz) ** server.exponent
            return
        slower_by = server.max_mhz / self.mhz
        prompt, token = self.model.prompt_clock_share, self.model.token_clock_share
        self._prompt_factor[:] = (1.0 - prompt) + prompt * slower_by
        self._token_factor[:] = (1.0 - token) + token * slower_by
        self._watt_factor[:] = (self.mhz / server.max_mhz) ** server.exponent

    def stop(self, server: int, lost_gpus: int) -> None:
        """Let a server stand still: its work waits, the GPUs that are left idle."""
        model = self.row.server
        gpus = max(model.gpus - lost_gpus, 0)
        self._stopped_w[server] = model.fixed_w + model.draw_per_gpu_watt_ratio * gpus * model.gpu_idle_w

    def start(self, server: int) -> None:
        """Let a server go on where it stopped."""
        self._stopped_w[server] = -1.0

    def advance_to(self, second: int) -> None:
        """Run up to the start of a second."""
        while self.now_s < second:
            span = min(second - self.now_s, SPAN_S)
            advance(
                self.now_s,
                span,
                self._arrival_s,
                self._prompt_s,
                self._output,
                self.finish_s,
                self._next,
                self._end,
                self._prompt,
                self._prompt_left_s,
                self._batch,
                self._left,
                self._member,
                self._prompt_factor,
                self._token_factor,
                self._watt_factor,
                self._stopped_w,
                self._token_s,
                self._token_above_w,
                self._constants,
                self._is_low,
                self._breaker,
                self.row_w,
                self.low_w,
                self.high_w,
                self.theta_after,
                self._recent_w,
                self._done,
            )
            self.now_s += span

    def server_mean_w(self, seconds: int) -> Floats:
        """Mean watts of each server over the last seconds (at most `SPAN_S`), [N]."""
        mean: Floats = self._recent_w[(self.now_s - 1) % SPAN_S].copy()
        for back in range(2, seconds + 1):
            mean += self._recent_w[(self.now_s - back) % SPAN_S]
        return mean / seconds

    @property
    def theta(self) -> float:
        """θ now."""
        return float(self._breaker[3])

    @property
    def trips(self) -> int:
        """Crossings of the trip state so far."""
        return int(self._breaker[4])

    @property
    def is_empty(self) -> bool:
        """Every request is complete."""
        return int(self._done[0]) == self.order.size
