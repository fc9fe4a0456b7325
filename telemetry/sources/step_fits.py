"""Reads and writes fitted step times: JSON of schema ``fitted-steps/1``.

It exists so that a fit made once (``ballast simulate validate --calibrate --write-fit``) serves many scenarios. It fits
nothing. Fields it does not know are passed over.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solver.domain.errors import InputError, Place
from solver.performance.fitted import StepFit
from solver.performance.protocol import ReplicaKind

SCHEMA: Literal["fitted-steps/1"] = "fitted-steps/1"
_LARGEST_S = 1e4

_Seconds = Annotated[float, Field(ge=0, le=_LARGEST_S, allow_inf_nan=False)]
_Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]


class _Fit(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    model: _Name
    gpu_type: _Name
    gpus_per_replica: Annotated[int, Field(ge=1)]
    precision: _Name
    prefill_s: _Seconds
    prefill_token_s: _Seconds
    prefill_pair_s: _Seconds
    decode_s: _Seconds
    sequence_s: _Seconds
    kv_token_s: _Seconds
    shared_s: _Seconds
    accept_s: _Seconds = 0.0
    prefills: _Count
    decodes: _Count
    prefill_ratio_90: list[_Ratio] = Field(default=[1.0, 1.0], min_length=2, max_length=2)
    decode_ratio_90: list[_Ratio] = Field(default=[1.0, 1.0], min_length=2, max_length=2)
    source: str = ""


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    schema_: Literal["fitted-steps/1"] = Field(alias="schema")
    fits: list[_Fit] = Field(min_length=1)


def read_step_fits(path: str | Path) -> tuple[StepFit, ...]:
    """Read a file of fits.

    Raises
    ------
    InputError
        With the line or the field, for everything that is no sound fit.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", where=source, right=f"a file of {SCHEMA}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 (byte {error.start})", where=source, right=f"a file of {SCHEMA}"
        ) from None
    try:
        document = _File.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg}", where=Place(source, error.lineno), right=f"a file of {SCHEMA}"
        ) from None
    except RecursionError:
        raise InputError("nested too deep", where=source, right=f"a file of {SCHEMA}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise InputError(
            first["msg"][:1].lower() + first["msg"][1:],
            where=Place(source, field=field.removeprefix(".") or "schema"),
            right=f"as docs/simulation.md describes {SCHEMA}",
        ) from None
    fits = tuple(_value(source, f, fit) for f, fit in enumerate(document.fits))
    seen: set[ReplicaKind] = set()
    for f, fit in enumerate(fits):
        if fit.kind in seen:
            raise InputError(
                f"two fits of {fit.kind}",
                where=Place(source, field=f"fits[{f}]"),
                right="one per replica kind",
            )
        seen.add(fit.kind)
    return fits


def _value(source: str, f: int, fit: _Fit) -> StepFit:
    if fit.prefill_s + fit.prefill_token_s <= 0.0 or fit.decode_s + fit.sequence_s <= 0.0:
        raise InputError(
            "iterations that take no time",
            where=Place(source, field=f"fits[{f}]"),
            right="prefill_s or prefill_token_s, and decode_s or sequence_s, above 0",
        )
    if fit.shared_s > min(fit.prefill_s, fit.decode_s) * (1.0 + 1e-9):
        raise InputError(
            f"got {fit.shared_s:g}",
            where=Place(source, field=f"fits[{f}].shared_s"),
            right="at most prefill_s and decode_s",
        )
    return StepFit(
        kind=ReplicaKind(
            model=fit.model,
            gpu_type=fit.gpu_type,
            gpus_per_replica=fit.gpus_per_replica,
            precision=fit.precision,
        ),
        prefill_s=fit.prefill_s,
        prefill_token_s=fit.prefill_token_s,
        prefill_pair_s=fit.prefill_pair_s,
        decode_s=fit.decode_s,
        sequence_s=fit.sequence_s,
        kv_token_s=fit.kv_token_s,
        shared_s=fit.shared_s,
        accept_s=fit.accept_s,
        prefills=fit.prefills,
        decodes=fit.decodes,
        prefill_ratio_90=(fit.prefill_ratio_90[0], fit.prefill_ratio_90[1]),
        decode_ratio_90=(fit.decode_ratio_90[0], fit.decode_ratio_90[1]),
        source=fit.source,
    )


def step_fits_document(fits: tuple[StepFit, ...]) -> dict[str, Any]:
    """Return what a file of fits holds."""
    return {
        "schema": SCHEMA,
        "fits": [
            {
                "model": fit.kind.model,
                "gpu_type": fit.kind.gpu_type,
                "gpus_per_replica": fit.kind.gpus_per_replica,
                "precision": fit.kind.precision,
                "prefill_s": fit.prefill_s,
                "prefill_token_s": fit.prefill_token_s,
                "prefill_pair_s": fit.prefill_pair_s,
                "decode_s": fit.decode_s,
                "sequence_s": fit.sequence_s,
                "kv_token_s": fit.kv_token_s,
                "shared_s": fit.shared_s,
                "accept_s": fit.accept_s,
                "prefills": fit.prefills,
                "decodes": fit.decodes,
                "prefill_ratio_90": list(fit.prefill_ratio_90),
                "decode_ratio_90": list(fit.decode_ratio_90),
                "source": fit.source,
            }
            for fit in fits
        ],
    }
