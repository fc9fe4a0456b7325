"""``ballast catalogue gpus|models``: what Ballast knows of GPUs and models, and where from.

It exists so that users see the facts a plan rests on, and which of them are only recalled, before they trust it. It
prints; the facts live in `telemetry.catalogue`.
"""

from pathlib import Path
from typing import Any

import click

from controller.cli.options import common_options, output_option

GIB = 2.0**30
_PRICE_WORDS = {"listed": "listed", "illustrative": "example"}

_FILE_OPTION = click.option(
    "--file",
    "extra",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Catalogue file of your own (TOML) that adds or overrides; may be given again.",
)


@click.group()
def catalogue() -> None:
    """Show the GPU and model catalogues.

    Example: ballast catalogue gpus h100
    """


def _matches(wanted: str | None, *texts: str | None) -> bool:
    return wanted is None or any(wanted.lower() in text.lower() for text in texts if text is not None)


def _cell(value: float | None, recalled: bool, digits: str = "g") -> str | None:
    if value is None:
        return None
    return f"{value:{digits}}{'*' if recalled else ''}"


def _per(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 6)


def _nothing(kind: str, wanted: str | None) -> None:
    if wanted is not None:
        click.echo(f"no {kind} matches {wanted!r}", err=True)


def _provenance(item: Any) -> dict[str, Any]:
    facts = item.provenance
    return {
        "sources": list(facts.sources),
        "date": facts.date,
        "recalled": sorted(facts.recalled),
        "notes": facts.notes,
    }


@catalogue.command()
@click.argument("pattern", required=False, metavar="[FILTER]")
@_FILE_OPTION
@common_options(output_option)
def gpus(pattern: str | None, extra: tuple[Path, ...], output: str) -> None:
    """List GPU types whose name, vendor or node label contains FILTER.

    Example: ballast catalogue gpus a100 --file my-gpus.toml -o json
    """
    from controller.cli.output import print_structured, print_table
    from telemetry.catalogue.read import read_gpus

    found = [
        gpu
        for gpu in read_gpus(extra).values()
        if _matches(pattern, gpu.name, gpu.vendor, *gpu.product_labels)
    ]
    if output != "table":
        entries = [
            {
                "name": gpu.name,
                "vendor": gpu.vendor,
                "product_labels": list(gpu.product_labels),
                "memory_bytes": gpu.memory_bytes,
                "memory_marketed_gb": gpu.memory_marketed_gb,
                "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
                "fp16_flops": gpu.fp16_flops,
                "has_bf16": gpu.has_bf16,
                "fp8_flops": gpu.fp8_flops,
                "int8_ops": gpu.int8_ops,
                "fp4_flops": gpu.fp4_flops,
                "tdp_w": gpu.tdp_w,
                "idle_w": gpu.idle_w,
                "idle_kind": gpu.idle_kind,
                "min_power_limit_w": gpu.min_power_limit_w,
                "max_power_limit_w": gpu.max_power_limit_w,
                "max_sm_hz": gpu.max_sm_hz,
                "interconnect_kind": gpu.interconnect_kind,
                "interconnect_bytes_per_s": gpu.interconnect_bytes_per_s,
                "interconnect_domain_gpus": gpu.interconnect_domain_gpus,
                "pcie_bytes_per_s": gpu.pcie_bytes_per_s,
                "gpus_per_node": gpu.gpus_per_node,
                "price_usd_per_h": gpu.price_usd_per_h,
                "price_mark": gpu.price_mark,
                "price_date": gpu.price_date,
                "price_from": gpu.price_from,
                **_provenance(gpu),
            }
            for gpu in found
        ]
        print_structured({"schema": "gpu-catalogue/1", "version": 1, "gpus": entries}, output)
        return
    columns = (
        "GPU type",
        "GiB",
        "GB/s",
        "fp16 TF",
        "fp8 TF",
        "TDP W",
        "idle W",
        "link GB/s",
        "US$/h",
        "price",
    )
    rows = []
    for gpu in found:
        recalled = gpu.provenance.recalled
        rows.append(
            (
                gpu.name,
                _cell(_per(gpu.memory_bytes, GIB), "memory_bytes" in recalled),
                _cell(
                    _per(gpu.memory_bandwidth_bytes_per_s, 1e9), "memory_bandwidth_bytes_per_s" in recalled
                ),
                _cell(_per(gpu.fp16_flops, 1e12), "fp16_flops" in recalled),
                _cell(_per(gpu.fp8_flops, 1e12), "fp8_flops" in recalled),
                _cell(gpu.tdp_w, "tdp_w" in recalled),
                _cell(gpu.idle_w, "idle_w" in recalled or gpu.idle_kind == "assumed"),
                _cell(_per(gpu.interconnect_bytes_per_s, 1e9), "interconnect_bytes_per_s" in recalled),
                _cell(gpu.price_usd_per_h, "price_usd_per_h" in recalled, ".3f"),
                None if gpu.price_usd_per_h is None else _PRICE_WORDS.get(gpu.price_mark or "", "own"),
            )
        )
    print_table(f"{len(rows)} GPU types", columns, rows, right=range(1, 9))
    click.echo("* recalled or assumed: check first. Prices are examples, per GPU: set your own with --file.")
    if not rows:
        _nothing("GPU type", pattern)


@catalogue.command()
@click.argument("pattern", required=False, metavar="[FILTER]")
@_FILE_OPTION
@common_options(output_option)
def models(pattern: str | None, extra: tuple[Path, ...], output: str) -> None:
    """List models whose name, alias or family contains FILTER.

    Example: ballast catalogue models llama -o json
    """
    from controller.cli.output import print_structured, print_table
    from telemetry.catalogue.read import read_models

    found = [
        model
        for model in read_models(extra).values()
        if _matches(pattern, model.name, model.family, *model.aliases)
    ]
    if output != "table":
        entries = [
            {
                "name": model.name,
                "aliases": list(model.aliases),
                "family": model.family,
                "parameters": model.parameters,
                "active_parameters": model.active_parameters,
                "parameters_from_shapes": model.parameters_from_shapes,
                "active_parameters_from_shapes": model.active_parameters_from_shapes,
                "layers": model.layers,
                "dense_layers_before_moe": model.dense_layers_before_moe,
                "hidden_size": model.hidden_size,
                "attention": model.attention.value,
                "heads": model.heads,
                "kv_heads": model.kv_heads,
                "head_dim": model.head_dim,
                "v_head_dim": model.v_head_dim,
                "q_lora_rank": model.q_lora_rank,
                "kv_lora_rank": model.kv_lora_rank,
                "qk_nope_head_dim": model.qk_nope_head_dim,
                "qk_rope_head_dim": model.qk_rope_head_dim,
                "sliding_window_tokens": model.sliding_window_tokens,
                "full_attention_layers": model.full_attention_layers,
                "intermediate_size": model.intermediate_size,
                "gated_mlp": model.gated_mlp,
                "moe_intermediate_size": model.moe_intermediate_size,
                "experts": model.experts,
                "experts_per_token": model.experts_per_token,
                "shared_experts": model.shared_experts,
                "vocab_size": model.vocab_size,
                "tied_embeddings": model.tied_embeddings,
                "max_context_tokens": model.max_context_tokens,
                "default_precision": model.default_precision.value,
                "default_precision_bytes": model.default_precision_bytes,
                "weight_bytes": model.weight_bytes(model.default_precision),
                "kv_bytes_per_token": model.kv_bytes_per_token(),
                **_provenance(model),
            }
            for model in found
        ]
        print_structured({"schema": "model-catalogue/1", "version": 1, "models": entries}, output)
        return
    columns = ("model", "params", "active", "att", "MoE", "context", "weights", "KV")
    rows = []
    for model in found:
        recalled = model.provenance.recalled
        rows.append(
            (
                model.name,
                _cell(model.parameters / 1e9, "parameters" in recalled, ".4g"),
                _cell(model.active_parameters / 1e9, "active_parameters" in recalled, ".3g"),
                model.attention.value,
                None if model.experts is None else f"{model.experts_per_token}/{model.experts}",
                _cell(model.max_context_tokens, "max_context_tokens" in recalled),
                f"{model.weight_bytes(model.default_precision) / GIB:.3g} {model.default_precision.value}",
                f"{model.kv_bytes_per_token() / 1024:.4g}",
            )
        )
    print_table(f"{len(rows)} models", columns, rows, right=(1, 2, 4, 5, 6, 7))
    click.echo(
        "params in 10^9, weights in GiB as published, KV in KiB per token (2 bytes). * recalled, check first"
    )
    if not rows:
        _nothing("model", pattern)
