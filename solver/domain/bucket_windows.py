"""Recorded rates of several request sizes side by side, in windows of equal length: how the mix of traffic changed.

It exists because a total hides which requests make it up, and a few long prompts can weigh as much as a thousand short
ones. A single service's rate is `solver.domain.rate_windows`; this is one such record per bucket, on one grid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats, Ints, Requests

MOST_CELLS = 20_000_000
"""Windows times buckets that are counted at most (160 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BucketWindows:
    """Rates by window and bucket; window i is [start_s + i window_s, start_s + (i+1) window_s)."""

    name: str
    start_s: float
    window_s: float
    rates_rps: Floats
    """[windows, buckets] mean of each window; a row is NaN where nothing was recorded."""

    def __post_init__(self) -> None:
        rates = np.asarray(self.rates_rps, dtype=np.float64).view()
        rates.flags.writeable = False
        object.__setattr__(self, "rates_rps", rates)

    def __len__(self) -> int:
        return len(self.rates_rps)

    def weighed(self, weights: Floats) -> RateWindows:
        """Return the record of the sum over buckets of weight x rate."""
        return RateWindows(
            name=self.name,
            start_s=self.start_s,
            window_s=self.window_s,
            # Not a matrix product: its rounding may change with the number of threads.
            rate_rps=(self.rates_rps * weights).sum(axis=1),
        )

    @property
    def total(self) -> RateWindows:
        """The record of all requests together."""
        return self.weighed(np.ones(self.rates_rps.shape[1]))


def nearest_bucket(buckets: Sequence[RequestBucket], requests: Requests) -> Ints:
    """Return the bucket whose size is nearest to each request, in logarithms."""
    sizes = np.log([[b.input_tokens or 1.0, b.output_tokens or 1.0] for b in buckets])
    own = np.log(np.stack((requests.prompt_tokens, requests.output_tokens), axis=1).astype(np.float64))
    nearest = np.empty(len(requests), dtype=np.int64)
    for start in range(0, len(requests), 65536):
        part = own[start : start + 65536]
        distance = ((part[:, None, :] - sizes[None, :, :]) ** 2).sum(axis=2)
        nearest[start : start + 65536] = distance.argmin(axis=1)
    return nearest


def bucket_windows(
    chunks: Iterable[Requests], buckets: Sequence[RequestBucket], *, window_s: float, name: str
) -> BucketWindows:
    """Count the requests of a trace by window and nearest bucket, chunk by chunk.

    Windows begin with the first arrival; the last one counts only if the trace covers it in full. Memory grows with
    windows x buckets, not with requests.

    Raises
    ------
    InputError
        If the trace covers no whole window, or there are too many.
    """
    most = MOST_CELLS // len(buckets)
    counts = np.zeros((0, len(buckets)))
    first_s = last_s = 0.0
    for chunk in chunks:
        if not len(counts):
            first_s = float(chunk.arrival_s[0])
        last_s = float(chunk.arrival_s[-1])
        number = int((last_s - first_s) // window_s) + 1
        if number > most:
            raise InputError(
                f"{number:,} windows of {window_s:g} s", right=f"at most {most:,}: a longer --window-s"
            )
        if number > len(counts):  # twice as many as needed, so that growing costs little
            grown = np.zeros((min(most, 2 * number), len(buckets)))
            grown[: len(counts)] = counts
            counts = grown
        window = ((chunk.arrival_s - first_s) // window_s).astype(np.int64)
        begin = int(window[0])
        flat = (window - begin) * len(buckets) + nearest_bucket(buckets, chunk)
        found = np.bincount(flat, minlength=(number - begin) * len(buckets)).reshape(-1, len(buckets))
        counts[begin:number] += found
    whole = int((last_s - first_s) // window_s)
    if not whole:
        raise InputError(
            f"no whole window of {window_s:g} s in {last_s - first_s:g} s",
            where=name,
            right="a shorter --window-s",
        )
    return BucketWindows(name=name, start_s=first_s, window_s=window_s, rates_rps=counts[:whole] / window_s)
