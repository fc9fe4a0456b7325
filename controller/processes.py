"""Worker processes that end with us, whatever ends us.

It exists because a worker that waits for its next task never notices that its parent was killed: it would keep memory,
and keep our pipes open, for ever. It knows nothing of the work.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start ``count`` spawned processes; tasks that have not begun are dropped at the end."""
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        yield pool
    except BaseException:  # given up: nobody waits for what they work on
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    threading.Thread(target=_watch_parent, name="watch-parent", daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
