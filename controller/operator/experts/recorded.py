"""Reads the loads of one ExpertPlacement from wherever they are recorded, within a time and a size.

It exists so that every source ends in the same value: a recording with the time it is of, or the reason why there is
none. Nothing is smoothed or decided here. Missing data is never zero.
"""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controller.operator.api import CONFIG_MAPS, Api, ApiError
from controller.operator.experts.history import HistoryError, LoadHistory, recording_of
from controller.operator.times import parse_time
from controller.operator.world import Key
from controller.resources.expert_placement import ExpertPlacementSpec, LoadConfigMap, LoadStore, LoadVolume
from solver.domain.errors import InputError
from telemetry.experts.load_file import of_shape, read_recording
from telemetry.experts.recording import ExpertRecording
from telemetry.sources.bounded_http import fetched, http_client
from telemetry.sources.prometheus_access import AccessError, PrometheusServers
from telemetry.sources.prometheus_experts import expert_loads

MOST_FILE_BYTES = 256 * 2**20
MOST_DUMP_BYTES = 64 * 2**20
DUMP_LIMIT_S = 20.0
LEAST_COVERED = 0.5
"""Of a window: less of it in the history says too little about the rest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was found at a source: a recording, or why there is none."""

    recording: ExpertRecording | None = None
    version: str = ""
    """Changes with what is recorded."""
    at_s: float = 0.0
    """Seconds since 1970: when it was recorded, as far as the source says."""
    reason: str = ""
    message: str = ""


class _MissingError(Exception):
    """The source is not there."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def measured(spec: ExpertPlacementSpec) -> bool:
    """Whether the source is asked once per window, because it is recorded all the time."""
    source = spec.load_source
    return source.prometheus is not None or source.http_dump is not None or source.sql_store is not None


def is_new(spec: ExpertPlacementSpec, known: Look | None, now: Look) -> bool:
    """Whether a look found another window than the one before: what is measured here and now is always new."""
    if spec.load_source.prometheus is not None or spec.load_source.http_dump is not None:
        return True
    return known is None or known.recording is None or known.version != now.version


def look(
    api: Api,
    key: Key,
    spec: ExpertPlacementSpec,
    *,
    folder: str,
    known: Look | None = None,
    history: LoadHistory | None = None,
    servers: PrometheusServers | None = None,
) -> Look:
    """Read the source; ``folder`` is where volumes are mounted, ``known`` what was read before.

    What is read for the first time is kept in the history, if there is one.
    """
    now = _looked(api, key, spec, folder=folder, known=known, history=history, servers=servers)
    source = spec.load_source
    if history is None or now.recording is None or source.sql_store is not None or not now.at_s:
        return now
    same = known is not None and known.recording is not None and known.version == now.version
    if not same or source.prometheus is not None:  # an address may give the same dump twice
        history.keep(
            key,
            now.recording,
            model=spec.model_ref.name,
            end_s=now.at_s,
            window_s=float(source.window_seconds),
        )
    return now


def _looked(
    api: Api,
    key: Key,
    spec: ExpertPlacementSpec,
    *,
    folder: str,
    known: Look | None,
    history: LoadHistory | None,
    servers: PrometheusServers | None,
) -> Look:
    source = spec.load_source
    try:
        if source.config_map is not None:
            return _config_map(api, key, spec, source.config_map, known)
        if source.pvc is not None:
            return _volume(key, spec, source.pvc, folder, known)
        if source.prometheus is not None:
            return _prometheus(key, spec, servers)
        if source.http_dump is not None:
            return _dump(spec, source.http_dump.url)
        if source.sql_store is not None:
            return _stored(key, spec, source.sql_store, history)
    except _MissingError as missing:
        return Look(reason=missing.reason, message=str(missing))
    except AccessError as error:
        return Look(reason="LoadUnreadable", message=str(error))
    except InputError as error:
        return Look(reason="LoadInvalid", message=str(error))
    raise ValueError("no source is named")


def _config_map(
    api: Api, key: Key, spec: ExpertPlacementSpec, source: LoadConfigMap, known: Look | None
) -> Look:
    where = f"ConfigMap {source.name}"
    try:
        body = api.get(CONFIG_MAPS, key[0], source.name)
    except ApiError as error:
        raise _MissingError("LoadUnreadable", f"{where}: {error}") from None
    if body is None:
        raise _MissingError("LoadMissing", f"{where} does not exist in {key[0]}")
    text = (body.get("data") or {}).get(source.key)
    if text is None:
        raise _MissingError("LoadMissing", f"{where} has no key {source.key}")
    version = _version(text.encode())
    if known is not None and known.version == version and known.recording is not None:
        return _again(known)
    return Look(
        recording=_parsed(text.encode(), spec, f"{where}, {source.key}"),
        version=version,
        at_s=_written_s(body["metadata"]),
    )


def _again(known: Look) -> Look:
    """Return what was read before; whatever was wrong meanwhile is over."""
    return replace(known, reason="", message="") if known.reason else known


def _written_s(metadata: Mapping[str, Any]) -> float:
    stamps = [entry.get("time") for entry in metadata.get("managedFields") or []]
    stamps.append(metadata.get("creationTimestamp"))
    return max((parse_time(str(stamp)) for stamp in stamps if stamp), default=0.0)


def _volume(key: Key, spec: ExpertPlacementSpec, source: LoadVolume, folder: str, known: Look | None) -> Look:
    where = f"volume {source.claim}, {key[0]}/{source.path}"
    own = Path(folder) / source.claim / key[0]  # a namespace reads its own folder only
    if not folder or not own.parent.is_dir():
        raise _MissingError("LoadMissing", f"volume {source.claim} is not mounted into the controller")
    path = own / source.path
    try:
        if not path.resolve().is_relative_to(own.resolve()):
            raise _MissingError("LoadUnreadable", f"{where} leaves the folder")
        facts = path.stat()
        parts = [part.stat() for part in path.iterdir()] if path.is_dir() else [facts]
    except OSError as error:
        raise _MissingError("LoadMissing", f"{where}: {error.strerror}") from None
    if sum(part.st_size for part in parts) > MOST_FILE_BYTES:
        raise _MissingError("LoadUnreadable", f"{where}: more than {MOST_FILE_BYTES >> 20} MiB")
    version = " ".join(f"{part.st_mtime_ns}-{part.st_size}" for part in [facts, *parts])
    if known is not None and known.version == version and known.recording is not None:
        return _again(known)
    try:
        recording = _of_file(path, spec)
    except InputError as error:
        raise InputError(error.what, where=where, right=error.right) from None
    return Look(recording=recording, version=version, at_s=max(part.st_mtime for part in parts))


def _of_file(path: Path, spec: ExpertPlacementSpec) -> ExpertRecording:
    model = spec.model_ref
    return read_recording(
        path,
        model=model.name,
        layers=model.moe_layers,
        experts=model.experts,
        first_layer=model.first_moe_layer,
    )


def _parsed(raw: bytes, spec: ExpertPlacementSpec, where: str) -> ExpertRecording:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.json"
        path.write_bytes(raw)
        try:
            return _of_file(path, spec)
        except InputError as error:
            field = getattr(error.where, "field", None)
            place = where if field is None else f"{where}: {field}"
            raise InputError(error.what, where=place, right=error.right) from None


def _prometheus(key: Key, spec: ExpertPlacementSpec, servers: PrometheusServers | None) -> Look:
    source, model = spec.load_source.prometheus, spec.model_ref
    if source is None:
        raise ValueError("no Prometheus is named")
    load = asyncio.run(
        expert_loads(
            source.url,
            metric=source.metric,
            selector=source.selector,
            layer_label=source.layer_label,
            expert_label=source.expert_label,
            layers=model.moe_layers,
            experts=model.experts,
            first_layer=model.first_moe_layer,
            window_s=spec.load_source.window_seconds,
            servers=servers,
            namespace=key[0],
        )
    )
    recording = ExpertRecording(source=source.url, load=load)
    return Look(recording=recording, version=_version(load.tobytes()), at_s=time.time())


def _dump(spec: ExpertPlacementSpec, url: str) -> Look:
    async def ask() -> bytes:
        async with http_client() as client:
            _, body = await fetched(
                client, url, source=url, most_bytes=MOST_DUMP_BYTES, timeout_s=DUMP_LIMIT_S
            )
            return body

    body = asyncio.run(ask())
    return Look(recording=_parsed(body, spec, url), version=_version(body), at_s=time.time())


def _stored(key: Key, spec: ExpertPlacementSpec, source: LoadStore, history: LoadHistory | None) -> Look:
    """Add up the last windows of a recording; their counts are brought to the length of one window."""
    if history is None:
        raise _MissingError("NoDatabase", "the controller has no database: name one by --database-url")
    name = recording_of((key[0], source.recording))
    where, window_s = f"recording {name}", float(spec.load_source.window_seconds)
    try:
        found = history.read(name, window_s=window_s)
    except HistoryError as error:
        raise _MissingError("LoadUnreadable", f"{where}: {error}") from None
    if found is None:
        raise _MissingError("LoadMissing", f"{where} has no windows in the history")
    model = spec.model_ref
    if found.model != model.name:
        raise InputError(f"loads of {found.model}", where=where, right=f"those of {model.name}")
    recording = of_shape(
        ExpertRecording(source=where, load=found.load, transitions=found.transitions),
        layers=model.moe_layers,
        experts=model.experts,
    )
    if found.covered_s < LEAST_COVERED * window_s:
        what = f"{where}: {found.covered_s:g} s of the last {window_s:g} s are recorded, half is needed"
        raise _MissingError("LoadIncomplete", what)
    part = window_s / found.covered_s
    steps = recording.transitions
    recording = replace(
        recording, load=part * recording.load, transitions=None if steps is None else part * steps
    )
    version = _version(recording.load.tobytes() + repr(found.end_s).encode())
    return Look(recording=recording, version=version, at_s=found.end_s)


def _version(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
