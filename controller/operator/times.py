"""Times as Kubernetes writes them.

It exists so that every module reads and writes instants alike. The clock is read by the caller.
"""

import datetime as dt


def written_time(seconds: float) -> str:
    """Write seconds since 1970 as RFC 3339 with whole seconds."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> float:
    """Read RFC 3339 as seconds since 1970; 0 for what is none."""
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
