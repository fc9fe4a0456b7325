"""Runs ``ballast`` commands in forks of one process that has loaded everything: the other end of `tests.commands`.

It exists because most of a short command's time goes into loading; each command still has a process, descriptors, an
environment and a working directory of its own. It serves tests only.
"""

import importlib
import json
import os
import socket
import sys

MOST_BYTES = 2**20
LOADED = (
    "controller.cli.root",
    "controller.cli.compare",
    "controller.cli.demo",
    "controller.cli.experts",
    "controller.cli.plan_experts",
    "controller.cli.plan_gpus",
    "controller.cli.plan_power",
    "controller.cli.power",
    "controller.cli.simulate",
    "controller.cli.simulate_row",
    "controller.cli.sweep",
    "controller.cli.trace",
    "controller.capacity",
    "controller.planning",
    "controller.power_planning",
    "controller.row_simulation",
    "controller.simulation",
    "controller.sweeps",
    "controller.trace_study",
    "solver.backends.cbc",
    "solver.backends.highs",
    "controller.expert_planning",
    "telemetry.store.store",
)


def _command(words: list[str], at: str, environment: dict[str, str], descriptors: list[int]) -> int:
    """Become the command; returns its exit code."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(at)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["ballast", *words]
    from controller.cli.root import main

    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    return code


def serve(connection: socket.socket) -> None:
    """Answer until the other end goes away."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
        if not message:
            return
        asked = json.loads(message)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                connection.close()
                code = _command(asked["words"], asked["at"], asked["environment"], list(descriptors))
            finally:
                os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(json.dumps(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def main() -> None:
    """Load, then serve on the descriptor that the first word names."""
    for module in LOADED:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
