"""``ballast experts``: put what an engine recorded of its routing into the history.

It exists as the thin shell around `telemetry.experts` (reading) and `telemetry.store` (writing), for loads that no
ExpertPlacement of the cluster reads itself. Placing experts is ``ballast plan experts``.
"""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from controller.cli.history import history_option, opened_history
from controller.cli.lazy import LazyGroup
from controller.cli.options import FiniteRange, common_options, output_option, read_time
from solver.domain.errors import InputError

_NAME = r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?"


@click.group(cls=LazyGroup, members={"record": "controller.cli.experts:record"})
def experts() -> None:
    """Record loads of experts in the history.

    Example: ballast experts record load.json --recording team-a/moe --model my/moe --database-url sqlite:///h.db
    """


def _recording(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    if len(value) > 512 or re.fullmatch(f"{_NAME}/{_NAME}", value) is None:
        raise click.BadParameter(f"{value!r} is not NAMESPACE/NAME, such as team-a/moe.")
    return value


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--recording",
    required=True,
    metavar="NS/NAME",
    callback=_recording,
    help="Where it goes: ExpertPlacements of namespace NS read it as sqlStore: {recording: NAME}.",
)
@click.option("--model", required=True, metavar="NAME", help="Whose loads they are, as in modelRef.name.")
@history_option
@click.option(
    "--window-s",
    type=FiniteRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that FILE, or each window in it, covers.",
)
@click.option(
    "--ended-at",
    "end_s",
    metavar="TIME",
    callback=read_time,
    help="When the (last) window ended.  [default: when FILE was written]",
)
@click.option("--moe-layers", type=click.IntRange(min=1), help="Refuse another number of MoE layers.")
@click.option("--experts", type=click.IntRange(min=1), help="Refuse another number of experts.")
@click.option(
    "--first-moe-layer",
    type=click.IntRange(min=0),
    help="Dense layers before the first MoE layer, in dumps that count them.  [default: as FILE shows]",
)
@common_options(output_option)
def record(
    *,
    file: str,
    recording: str,
    model: str,
    database_url: str,
    window_s: float,
    end_s: float | None,
    moe_layers: int | None,
    experts: int | None,
    first_moe_layer: int | None,
    output: str,
) -> None:
    """Write the loads in FILE into the history, once however often it is called.

    FILE is JSON with load or load_windows, a dump of SGLang's recorder, or a folder of TensorRT-LLM's statistics
    (docs/expert-formats.md); - is standard input.

    Example: ballast experts record load.json --recording team-a/moe --model my/moe --database-url sqlite:///h.db
    """
    from controller.cli.answers import ballast_version
    from controller.cli.output import print_structured
    from telemetry.experts.load_file import read_recording
    from telemetry.store.expert_windows import windows_of

    found = read_recording(file, model=model, layers=moe_layers, experts=experts, first_layer=first_moe_layer)
    ended_s = _written_s(file) if end_s is None else end_s
    if ended_s > time.time() + 60:
        raise InputError(f"the window ends in the future: {_shown(ended_s)}", right="give --ended-at")
    windows = windows_of(found, recording=recording, model=model, end_s=ended_s, window_s=window_s)
    with opened_history(database_url) as store:
        store.migrate()
        new = store.record(windows)
    answer: dict[str, Any] = {
        "schema": "expert-recording/1",
        "version": ballast_version(),
        "recording": recording,
        "model": model,
        "moe_layers": found.layers,
        "experts": found.experts,
        "transitions": windows[0].transitions is not None,
        "start": _shown(windows[0].start_s),
        "end": _shown(windows[-1].end_s),
        "windows": len(windows),
        "new": new,
    }
    if output != "table":
        print_structured(answer, output)
        return
    there = len(windows) - new
    click.echo(
        f"{recording}: {new} of {len(windows)} windows written{', the rest was there' if there else ''}; "
        f"{found.layers} layers of {found.experts} experts, up to {answer['end']}"
    )


def _written_s(file: str) -> float:
    """Return when a file, or the newest in a folder, was written; standard input is of now."""
    if file == "-":
        return time.time()
    path = Path(file)
    return max(part.stat().st_mtime for part in ([*path.iterdir()] if path.is_dir() else [path]))


def _shown(t_s: float) -> str:
    return datetime.fromtimestamp(t_s, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
