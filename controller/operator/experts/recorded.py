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
from controller.operator.times import parse_time
from controller.operator.world import Key
from controller.resources.expert_placement import ExpertPlacementSpec, LoadConfigMap, LoadVolume
from solver.domain.errors import InputError
from telemetry.experts.load_file import of_shape, read_loads
from telemetry.experts.recording import ExpertRecording
from telemetry.experts.sglang_recording import read_sglang_recording
from telemetry.experts.tensorrt_recording import read_tensorrt_recording
from telemetry.sources.bounded_http import fetched, http_client
from telemetry.sources.prometheus_experts import expert_loads

MOST_FILE_BYTES = 256 * 2**20
MOST_DUMP_BYTES = 64 * 2**20
DUMP_LIMIT_S = 20.0


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
    """Whether the source is asked once per window, because every answer is a new window."""
    return spec.load_source.prometheus is not None or spec.load_source.http_dump is not None


def look(api: Api, key: Key, spec: ExpertPlacementSpec, *, folder: str, known: Look | None = None) -> Look:
    """Read the source; ``folder`` is where volumes are mounted, ``known`` what was read before."""
    source = spec.load_source
    try:
        if source.config_map is not None:
            return _config_map(api, key, spec, source.config_map, known)
        if source.pvc is not None:
            return _volume(key, spec, source.pvc, folder, known)
        if source.prometheus is not None:
            return _prometheus(spec)
        if source.http_dump is not None:
            return _dump(spec, source.http_dump.url)
    except _MissingError as missing:
        return Look(reason=missing.reason, message=str(missing))
    except InputError as error:
        return Look(reason="LoadInvalid", message=str(error))
    return Look(reason="SourceNotSupported", message="recordings in the history cannot be read yet")


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
    shape = {"layers": model.moe_layers, "experts": model.experts}
    if path.is_dir():
        found = of_shape(read_tensorrt_recording(path), **shape)
    elif path.suffix in {".pt", ".pth"}:
        found = read_sglang_recording(path, experts=model.experts, first_layer=model.first_moe_layer)
        found = of_shape(found, **shape)
    else:
        found = read_loads(path, model=model.name, first_layer=model.first_moe_layer, **shape)
    # an engine's steps are too short for windows: a recording counts as one
    return found if found.decoder_layers is None and not path.is_dir() else replace(found, windows=None)


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


def _prometheus(spec: ExpertPlacementSpec) -> Look:
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


def _version(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
