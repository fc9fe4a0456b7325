"""Reads the GPU and model catalogues: the files that ship with Ballast, then the user's own on top.

It exists so that facts about hardware and models live in data files with their sources, enter in one place,
are checked there field by field and turned into SI units. It decides nothing and fetches nothing. The fields
of the files are described in docs/performance.md.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from solver.domain.errors import InputError, Place
from solver.domain.hardware import GpuType, Provenance, parse_precision
from solver.domain.llm import Attention, ModelShape

GIB = 2.0**30
GIGA = 1e9
TERA = 1e12
MEGA = 1e6

Table = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One field of a catalogue file: its name there and inside, what it may be, how it becomes SI."""

    key: str
    attribute: str
    right: str
    check: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    required: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(
    key: str, attribute: str, factor: float = 1.0, *, required: bool = False, zero: bool = False
) -> _Field:
    right = "a number of at least 0" if zero else "a number above 0 (leave the field out if it is not known)"
    return _Field(
        key=key,
        attribute=attribute,
        right=right,
        check=lambda value: _is_number(value) and (value > 0 or (zero and value == 0)),
        convert=lambda value: float(value) * factor,
        required=required,
    )


def _count(key: str, attribute: str | None = None, *, required: bool = False, zero: bool = False) -> _Field:
    least = 0 if zero else 1
    return _Field(
        key=key,
        attribute=attribute or key,
        right=f"a whole number of at least {least}",
        check=lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        required=required,
    )


def _text(key: str, attribute: str | None = None, *choices: str, required: bool = False) -> _Field:
    return _Field(
        key=key,
        attribute=attribute or key,
        right=f"one of {', '.join(choices)}" if choices else "a text",
        check=lambda value: isinstance(value, str) and value != "" and (not choices or value in choices),
        required=required,
    )


def _flag(key: str, attribute: str | None = None) -> _Field:
    return _Field(
        key=key,
        attribute=attribute or key,
        right="true or false",
        check=lambda value: isinstance(value, bool),
    )


def _texts(key: str) -> _Field:
    return _Field(
        key=key,
        attribute=key,
        right='a list of texts, as ["a", "b"]',
        check=lambda value: isinstance(value, list) and all(isinstance(item, str) and item for item in value),
        convert=tuple,
    )


def _precision_known(value: Any) -> bool:
    try:
        parse_precision(value)
    except (InputError, AttributeError):
        return False
    return True


_PROVENANCE = (_texts("sources"), _text("date"), _texts("recalled"), _text("notes"))

_GPU_FIELDS = (
    _text("vendor", required=True),
    _texts("product_labels"),
    _number("memory_gib", "memory_bytes", GIB, required=True),
    _number("memory_marketed_gb", "memory_marketed_gb"),
    _number("memory_bandwidth_gb_per_s", "memory_bandwidth_bytes_per_s", GIGA, required=True),
    _number("tflops_fp16", "fp16_flops", TERA, required=True),
    _flag("bf16", "has_bf16"),
    _number("tflops_fp8", "fp8_flops", TERA),
    _number("tops_int8", "int8_ops", TERA),
    _number("tflops_fp4", "fp4_flops", TERA),
    _number("tdp_w", "tdp_w", required=True),
    _number("idle_w", "idle_w"),
    _text("idle_kind", None, "measured", "assumed"),
    _number("min_power_limit_w", "min_power_limit_w"),
    _number("max_power_limit_w", "max_power_limit_w"),
    _number("max_sm_mhz", "max_sm_hz", MEGA),
    _text("interconnect_kind", None, "nvlink-switch", "nvlink-bridge", "xgmi", "pcie"),
    _number("interconnect_gb_per_s", "interconnect_bytes_per_s", GIGA),
    _count("interconnect_domain_gpus"),
    _number("pcie_gb_per_s", "pcie_bytes_per_s", GIGA),
    _count("gpus_per_node"),
    _number("price_usd_per_h", "price_usd_per_h", zero=True),
    _text("price_mark", None, "listed", "illustrative"),
    _text("price_date"),
    _text("price_from"),
)

_MODEL_FIELDS = (
    _texts("aliases"),
    _text("family"),
    _number("parameters", "parameters", required=True),
    _number("active_parameters", "active_parameters"),
    _count("layers", required=True),
    _count("hidden_size", required=True),
    _text("attention", None, *(kind.value for kind in Attention), required=True),
    _count("heads", required=True),
    _count("kv_heads", required=True),
    _count("head_dim", required=True),
    _count("v_head_dim"),
    _count("q_lora_rank"),
    _count("kv_lora_rank"),
    _count("qk_nope_head_dim"),
    _count("qk_rope_head_dim"),
    _count("sliding_window", "sliding_window_tokens"),
    _count("full_attention_layers", zero=True),
    _count("intermediate_size", required=True),
    _flag("gated_mlp"),
    _count("dense_layers_before_moe", zero=True),
    _count("moe_intermediate_size"),
    _count("experts"),
    _count("experts_per_token"),
    _count("shared_experts", zero=True),
    _count("vocab_size", required=True),
    _flag("tied_embeddings"),
    _count("max_context", "max_context_tokens"),
    _Field(
        key="default_precision",
        attribute="default_precision",
        right="a precision, as bf16 or fp8",
        check=_precision_known,
        convert=parse_precision,
        required=True,
    ),
    _number("default_precision_bytes", "default_precision_bytes"),
)


class _File:
    """One catalogue file: its text, for naming lines, and its entries as plain tables."""

    def __init__(self, name: str, raw: bytes, kind: str) -> None:
        self.name = name
        self.kind = kind
        try:
            self.text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"not UTF-8 (byte {error.start})", where=name, right="a TOML file in UTF-8"
            ) from None
        try:
            loaded = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"line (\d+)", str(error))
            raise InputError(
                f"not TOML: {error}",
                where=Place(name, int(line[1]) if line else None),
                right="key = value lines",
            ) from None
        schema = f"{kind}-catalogue/1"
        if loaded.get("schema") != schema:
            raise InputError(
                f"schema is {loaded.get('schema')!r}",
                where=Place(name, self.line(None, "schema"), "schema"),
                right=f'schema = "{schema}"',
            )
        for key in loaded:
            if key not in {"schema", kind}:
                raise InputError(
                    f"unknown table {key!r}",
                    where=Place(name, field=key),
                    right=f"tables named [{kind}.NAME]",
                )
        entries = loaded.get(kind, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise InputError(
                f"{kind!r} holds a value that is no table",
                where=Place(name, field=kind),
                right=f"tables named [{kind}.NAME]",
            )
        self.entries: dict[str, Table] = entries

    def line(self, entry: str | None, key: str | None) -> int | None:
        """Find the line of a field (or of the entry itself); None where the file spells it in another way."""
        heads = (f"[{self.kind}.{entry}]", f'[{self.kind}."{entry}"]')
        inside = entry is None
        at = None
        for number, line in enumerate(self.text.splitlines(), 1):
            stripped = line.strip()
            if stripped.startswith("["):
                inside = stripped.split("#")[0].strip() in heads
                at = number if inside else at
            if inside and key is not None and re.match(rf"{re.escape(key)}\s*=", stripped):
                return number
        return at

    def place(self, entry: str, key: str | None = None) -> Place:
        """Name the place of a field for an error."""
        field = f"{self.kind}.{entry}" if key is None else f"{self.kind}.{entry}.{key}"
        return Place(self.name, self.line(entry, key), field)

    def check(self, entry: str, table: Mapping[str, Any], fields: Sequence[_Field]) -> None:
        """Refuse fields that are unknown or hold the wrong thing."""
        known = {field.key: field for field in (*fields, *_PROVENANCE)}
        for key, value in table.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, 3)
                raise InputError(
                    f"unknown field {key!r}",
                    where=self.place(entry, key),
                    right=f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(known)}",
                )
            if not known[key].check(value):
                raise InputError(f"got {value!r}", where=self.place(entry, key), right=known[key].right)


def by_kind(paths: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Tell the user's GPU catalogues from their model catalogues by the schema that each file states.

    A file that states neither counts as a GPU catalogue, whose reader says what is wrong with it.
    """
    gpu_files: list[Path] = []
    model_files: list[Path] = []
    for path in paths:
        raw = path.read_bytes()
        is_models = re.search(rb"""^schema\s*=\s*["']model-catalogue/""", raw, re.MULTILINE) is not None
        (model_files if is_models else gpu_files).append(path)
    return tuple(gpu_files), tuple(model_files)


def _shipped(name: str, kind: str) -> _File:
    return _File(name, files("telemetry.catalogue").joinpath(name).read_bytes(), kind)


def _merge(base: Table | None, own: Table, source: str) -> Table:
    """Lay a user's entry over one of ours: given fields win, are not recalled, and name the file as source."""
    if base is None:
        return dict(own)
    merged = {**base, **own}
    if "price_usd_per_h" in own:
        for key in ("price_mark", "price_date", "price_from"):
            if key not in own:
                merged.pop(key, None)
        merged.setdefault("price_from", source)
    changed = [key for key in own if key not in {"sources", "date", "recalled", "notes"}]
    merged["recalled"] = [
        key for key in base.get("recalled", []) if key not in changed and key not in own.get("recalled", [])
    ] + list(own.get("recalled", []))
    merged["sources"] = [*base.get("sources", []), *own.get("sources", [f"{source}: {', '.join(changed)}"])]
    return merged


def _read(
    kind: str, shipped: str, extra: Sequence[Path], fields: Sequence[_Field]
) -> dict[str, tuple[Table, _File]]:
    read = [_shipped(shipped, kind)]
    read += [_File(str(path), path.read_bytes(), kind) for path in extra]
    merged: dict[str, tuple[Table, _File]] = {}
    for file in read:
        for name, table in file.entries.items():
            file.check(name, table, fields)
            base = merged.get(name)
            whole = _merge(None if base is None else base[0], table, file.name)
            if base is None:
                for field in fields:
                    if field.required and field.key not in whole:
                        raise InputError(
                            f"a new {kind} lacks {field.key!r}",
                            where=file.place(name),
                            right=f"{field.key} = {field.right}; or the exact name of a shipped {kind}",
                        )
            merged[name] = (whole, file)
    return merged


def _attributes(table: Table, fields: Iterable[_Field], units: Mapping[str, str]) -> dict[str, Any]:
    """Turn a checked table into arguments of the dataclass, in SI units."""
    values = {field.attribute: field.convert(table[field.key]) for field in fields if field.key in table}
    values["provenance"] = Provenance(
        sources=tuple(table.get("sources", ())),
        date=table.get("date"),
        recalled=frozenset(units.get(key, key) for key in table.get("recalled", ())),
        notes=table.get("notes"),
    )
    return values


def read_gpus(extra: Sequence[Path] = ()) -> dict[str, GpuType]:
    """Read the GPU catalogue, then the user's files over it in order.

    A file's entry adds a GPU type, or changes single fields of the one with the same name (only a price,
    say).

    Raises
    ------
    InputError
        For the first field that is wrong, with file, line and what would be right.
    """
    units = {field.key: field.attribute for field in _GPU_FIELDS}
    gpus: dict[str, GpuType] = {}
    for name, (table, file) in _read("gpu", "gpus.toml", extra, _GPU_FIELDS).items():
        gpu = GpuType(name=name, **_attributes(table, _GPU_FIELDS, units))
        if gpu.idle_w is not None and gpu.idle_w >= gpu.tdp_w:
            raise InputError(
                f"idle_w {gpu.idle_w:g} is not below tdp_w {gpu.tdp_w:g}",
                where=file.place(name, "idle_w"),
                right="idle power below the board's limit",
            )
        gpus[name] = gpu
    return gpus


def read_models(extra: Sequence[Path] = ()) -> dict[str, ModelShape]:
    """Read the model catalogue, then the user's files over it; raises as `read_gpus` does."""
    units = {field.key: field.attribute for field in _MODEL_FIELDS}
    models: dict[str, ModelShape] = {}
    for name, (table, file) in _read("model", "models.toml", extra, _MODEL_FIELDS).items():
        needed: tuple[str, ...] = ()
        if table["attention"] == Attention.MLA:
            needed = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if "experts" in table or "experts_per_token" in table or "moe_intermediate_size" in table:
            needed += ("experts", "experts_per_token", "moe_intermediate_size", "active_parameters")
        for key in needed:
            if key not in table:
                raise InputError(
                    f"lacks {key!r}",
                    where=file.place(name),
                    right="mla models give their ranks, mixtures of experts their experts",
                )
        if table.get("experts_per_token", 0) > table.get("experts", 0):
            raise InputError(
                f"got {table['experts_per_token']} of {table['experts']} experts",
                where=file.place(name, "experts_per_token"),
                right="no more experts per token than there are",
            )
        values = _attributes(table, _MODEL_FIELDS, units)
        values["attention"] = Attention(values["attention"])
        values.setdefault("active_parameters", values["parameters"])
        models[name] = ModelShape(name=name, **values)
    return models


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _find(kind: str, name: str, spellings: Mapping[str, str]) -> str:
    """Look a name up among spellings (spelling -> entry), exactly, then without case and punctuation."""
    if name in spellings:
        return spellings[name]
    wanted = _squeeze(name)
    hits = {entry for spelling, entry in spellings.items() if _squeeze(spelling) == wanted}
    if len(hits) == 1:
        return hits.pop()
    squeezed = {_squeeze(spelling): spelling for spelling in spellings}
    close = [squeezed[match] for match in difflib.get_close_matches(wanted, squeezed, 3, 0.5)]
    close = close or sorted(
        {entry for spelling, entry in spellings.items() if wanted and wanted in _squeeze(spelling)}
    )
    right = (
        f"did you mean {' or '.join(close[:3])}?" if close else f"'ballast catalogue {kind}s' lists the known"
    )
    raise InputError(f"unknown {kind} {name!r}", right=right)


def find_gpu(gpus: Mapping[str, GpuType], name: str) -> GpuType:
    """Find a GPU type by catalogue name or node label (also with ``-SHARED`` or a MIG suffix left on it).

    A MIG slice is a smaller device, so its label is refused rather than taken for the whole card.

    Raises
    ------
    InputError
        For an unknown name, with close matches.
    """
    if "-MIG-" in name:
        raise InputError(
            f"{name!r} is a MIG slice", right="a whole GPU, or an entry of your own for the slice (--file)"
        )
    spellings = {label: gpu.name for gpu in gpus.values() for label in gpu.product_labels}
    spellings.update({key: key for key in gpus})
    return gpus[_find("gpu", name.removesuffix("-SHARED"), spellings)]


def find_model(models: Mapping[str, ModelShape], name: str) -> ModelShape:
    """Find a model by id or alias, with or without the part before the slash; raises as `find_gpu`."""
    spellings: dict[str, str] = {}
    for model in models.values():
        for spelling in (model.name, *model.aliases):
            spellings.setdefault(spelling.rsplit("/", 1)[-1], model.name)
    for model in models.values():
        spellings.update(dict.fromkeys(model.aliases, model.name))
    spellings.update({key: key for key in models})
    return models[_find("model", name, spellings)]
