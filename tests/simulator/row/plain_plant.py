"""The plant's rule written a second time, plainly: lists, one server, one second after the other. No code is shared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROMPT = ((128, 256, 512, 1024, 2048, 4096, 8192), (0.0797, 0.0992, 0.1744, 0.2892, 0.5404, 1.3488, 3.5932))
TOKEN = ((1, 2, 4, 8, 16, 32, 64), (0.0493, 0.05, 0.051, 0.053, 0.0573, 0.0654, 0.0966))


def between(x: float, table: tuple[tuple[int, ...], tuple[float, ...]]) -> float:
    xs, ys = table
    if x <= xs[0]:
        return ys[0]
    for i in range(1, len(xs)):
        if x <= xs[i] or i == len(xs) - 1:
            return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    raise AssertionError


@dataclass
class PlainServer:
    """One server; requests are (arrival, prompt tokens, output tokens) in order."""

    requests: list[tuple[float, int, int]]
    finish: dict[int, float] = field(default_factory=dict)
    waiting: int = 0
    prompt: list[Any] | None = None  # [request, share of it that is left]
    decoding: list[list[float]] = field(default_factory=list)  # [request, tokens left]

    def second(self, t: int, mhz: int, *, braked: bool) -> float:
        f = 288 if braked else mhz
        kp = 1410 / f if braked else 0.2 + 0.8 * 1410 / f
        kt = 0.5 + 0.5 * 1410 / f if braked else 0.8 + 0.2 * 1410 / f
        used = 0.0
        while 1 - used > 1e-9:
            if self.prompt is None:
                if self.waiting == len(self.requests) or len(self.decoding) >= 16:
                    break
                if not self.requests[self.waiting][0] < t + used:
                    break
                self.prompt = [self.waiting, 1.0]
                self.waiting += 1
            request: int = self.prompt[0]
            share: float = self.prompt[1]
            whole = between(self.requests[request][1], PROMPT) * kp
            does = min(whole * share, 1 - used)
            used += does
            if does >= whole * share:
                self.decoding.append([request, float(self.requests[request][2])])
                self.prompt = None
            else:
                self.prompt[1] = share - does / whole
        batch, rest = len(self.decoding), 1 - used
        watts: float = used * (63 + (1.02 * 400 - 63) * (f / 1410) ** 1.13)
        if batch and rest > 1e-9:
            for sequence in self.decoding:
                sequence[1] -= rest / (between(batch, TOKEN) * kt)
            for done, left in self.decoding:
                if left <= 0:
                    self.finish[int(done)] = t + 1.0
            self.decoding = [sequence for sequence in self.decoding if sequence[1] > 0]
            frac = 0.58 + 0.10 * min(1, batch / 16)
            watts += rest * (63 + (frac * 400 - 63) * (f / 1410) ** 1.13)
        else:
            watts += rest * 63
        return 1250 + 1.5 * 8 * watts


def run_plain(
    requests: list[tuple[float, int, int, int]],
    servers: int,
    seconds: int,
    clock: Callable[[int, int], tuple[int, bool]],
) -> tuple[list[list[float]], dict[int, float]]:
    """Return watts by second and server, and the completion of every request (arrival, server, prompt, output)."""
    mine = {s: [i for i, request in enumerate(requests) if request[1] == s] for s in range(servers)}
    row = [
        PlainServer([(requests[i][0], requests[i][2], requests[i][3]) for i in mine[s]])
        for s in range(servers)
    ]
    watts: list[list[float]] = []
    for t in range(seconds):
        watts.append([])
        for s, server in enumerate(row):
            mhz, braked = clock(t, s)
            watts[-1].append(server.second(t, mhz, braked=braked))
    finish = {mine[s][k]: end for s, server in enumerate(row) for k, end in server.finish.items()}
    return watts, finish
