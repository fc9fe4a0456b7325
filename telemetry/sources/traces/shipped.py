"""Where the traces lie that Ballast ships, so that a first plan needs no data of one's own.

They are generated, not recorded; ``telemetry/traces/README.txt`` says by which command, and a test makes them again.
"""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2] / "traces"


def shipped_trace_path() -> Path:
    """Return one hour of conversation traffic, 20,056 requests."""
    return _FOLDER / "conversation.csv.gz"
