"""Settings of all tests: hypothesis without deadlines, repeatable draws in CI, and what the crash of a process ends."""

import os

import pytest
from hypothesis import settings

settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

CRASHED = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Note that one of xdist's processes crashed: tests that it had are not run."""
    if error:
        node.config.stash[CRASHED] = True  # type: ignore[attr-defined]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let `make retest` find nothing after a crash: trying again what failed would not run what was left."""
    if session.config.stash.get(CRASHED, False):
        session.config.cache.set("cache/lastfailed", {})
