"""What a look at loads changes, and when loads are too old to go by.

It exists so that missing, broken and old recordings are told apart in one place, and so that what was read once is no
new window when it is read again. It reads nothing and decides nothing.
"""

import time
from dataclasses import replace

from controller.operator.experts.case import Book
from controller.operator.experts.recorded import Look, is_new, measured
from controller.resources.expert_placement import ExpertPlacementSpec

AGAIN_S = 15.0
"""A measured source that failed is asked again after so long, or after a window if that is shorter."""
FRESH_WINDOWS = 3


def take(book: Book, now: Look) -> None:
    """Remember what a look brought, and when the next is due."""
    spec = book.spec
    if spec is None:
        return
    before, book.look = book.look, now
    window_s = spec.load_source.window_seconds
    if not measured(spec):
        book.next_look_s = 0.0
    elif now.recording is None:
        book.next_look_s = time.monotonic() + min(AGAIN_S, window_s)
    else:
        book.next_look_s = time.monotonic() + window_s
    if now.recording is None:
        # what was read stays known, so that the same recording is no new window when it is back
        if before is not None:
            book.look = replace(before, reason=now.reason, message=now.message)
        return
    if not now.recording.load.sum() > 0.0:
        book.look = replace(now, reason="NoTokens", message="the recording holds no tokens")
    elif is_new(spec, before, now):
        book.smoothed.add(now.recording, spec.load_source.ewma_alpha)


def stale(book: Book, spec: ExpertPlacementSpec, now_s: float) -> tuple[str, str]:
    """Say why nobody can go by the loads now: reason and message, empty if one can."""
    known = book.look
    if known is None:
        return "LoadMissing", "the loads were not read yet"
    if known.reason:
        return known.reason, known.message
    limit_s = spec.load_source.max_age_seconds
    if limit_s is None and measured(spec):
        limit_s = FRESH_WINDOWS * spec.load_source.window_seconds
    if limit_s is not None and now_s - known.at_s > limit_s:
        return "LoadOld", f"the recording is older than {limit_s} s"
    return "", ""
