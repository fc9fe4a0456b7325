"""``ballast plan experts``: place the experts of a mixture-of-experts model, or score a given map."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.options import (
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    seed_option,
    time_limit_option,
)

if TYPE_CHECKING:
    from solver.domain.moe import ExpertInstance, Slots

FORMATS = ("native", "sglang", "tensorrt-llm", "vllm", "vllm-ascend")


@click.command("experts")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--method",
    type=click.Choice(["ballast", "moetuner", "exflow", "eplb"]),
    default="ballast",
    show_default=True,
    help="Ballast's search, or a paper's own program.",
)
@click.option(
    "--mode",
    type=click.Choice(["fast", "full", "exact"]),
    default="fast",
    show_default=True,
    help="Seconds, up to a minute, or a proved optimum where the size allows.",
)
@click.option("--previous", type=click.Path(dir_okay=False), help="Map in force: say what moving takes.")
@click.option(
    "--max-moved",
    "max_moved_ratio",
    type=FiniteRange(0, 1),
    help="Fetch at most this share of all slots (with --previous).",
)
@click.option(
    "--comm",
    "communication",
    type=click.Choice(["transition", "dispatch"]),
    default="transition",
    show_default=True,
    help="Tokens stay with their last expert, or return after every layer as in vLLM, SGLang and TensorRT-LLM.",
)
@click.option(
    "--score", "scored", type=click.Path(dir_okay=False), help="Score this map instead of planning."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="native",
    show_default=True,
    help="Print the map as this engine loads it.",
)
@click.option(
    "--first-moe-layer",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Dense layers in front of the first MoE layer (for engines that count them).",
)
@click.option(
    "--decoder-layers",
    type=click.IntRange(min=1),
    help="All decoder layers, where layers follow the last MoE layer (sglang).",
)
@click.option(
    "--recording",
    "recordings",
    multiple=True,
    type=click.Path(),
    help="Take loads from what an engine recorded instead of FILE (SGLang: may be repeated).",
)
@click.option(
    "--recording-format",
    type=click.Choice(["sglang", "tensorrt-llm", "tokens"]),
    default="sglang",
    show_default=True,
    help="Who wrote --recording; tokens: an array of expert ids.",
)
@common_options(output_option, seed_option, time_limit_option, no_timings_option)
@click.pass_context
def experts(ctx: click.Context, /, **given: Any) -> None:
    """Place the experts of the model in FILE, or score a map.

    FILE is a moe-placement-instance/1 in JSON with its arrays beside it (docs/expert-formats.md).

    \b
    Examples:
      ballast plan experts deepseek.json --mode full -o json > map.json
      ballast plan experts deepseek.json --previous map.json --max-moved 0.05
      ballast plan experts deepseek.json --comm dispatch --format sglang --first-moe-layer 3 > sglang.json
      ballast plan experts deepseek.json --score map.json
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from controller.cli.output import print_structured, progress
    from telemetry.experts.instance_file import read_expert_instance, read_map

    _refuse_what_does_not_go_together(ctx, given)
    instance = read_expert_instance(given["file"])
    if given["recordings"]:
        instance = _recorded(instance, given)
    previous = None if given["previous"] is None else read_map(given["previous"], instance)
    if given["scored"] is not None:
        _score(instance, read_map(given["scored"], instance), previous, given)
        return
    from controller.cli.output import announce_compilation
    from controller.expert_planning import plan_experts
    from solver.experts.place import PlaceOptions

    announce_compilation()
    options = PlaceOptions(
        method=given["method"],
        mode=given["mode"],
        communication=given["communication"],
        seed=given["seed"],
        time_limit_s=given["time_limit_s"] - (time.monotonic() - ctx.find_root().obj),
        previous=previous,
        max_moved_ratio=given["max_moved_ratio"],
    )
    with progress(f"placing the experts of {instance.name}", None):
        timed = plan_experts(instance, options=options)
    plan = timed.plan
    solve_s = None if given["no_timings"] else timed.solve_s
    if given["form"] != "native":
        from telemetry.experts.map_formats import write_map

        click.echo(
            write_map(
                given["form"],
                plan.physical_to_logical,
                topology=instance.topology,
                experts=instance.experts,
                first_moe_layer=given["first_moe_layer"],
                decoder_layers=given["decoder_layers"],
            ).rstrip("\n")
        )
    elif given["output"] == "table":
        from controller.cli.expert_answers import print_expert_plan

        print_expert_plan(instance, plan, solve_s=solve_s)
    else:
        from controller.cli.expert_answers import expert_answer

        print_structured(expert_answer(instance, plan, solve_s=solve_s), given["output"])
    sys.stdout.flush()
    ctx.exit(ExitCode.TIMED_OUT if plan.cut_short else ExitCode.DONE)


def _refuse_what_does_not_go_together(ctx: click.Context, given: dict[str, Any]) -> None:
    if given["max_moved_ratio"] is not None and given["previous"] is None:
        raise click.UsageError("--max-moved needs --previous", ctx)
    if given["scored"] is not None and given["form"] != "native":
        raise click.UsageError("--format goes with a plan, not with --score", ctx)
    if given["form"] == "native" and (given["first_moe_layer"] or given["decoder_layers"]):
        raise click.UsageError("--first-moe-layer and --decoder-layers go with an engine's --format", ctx)
    if given["max_moved_ratio"] is not None and given["method"] != "ballast":
        raise click.UsageError("--max-moved goes with --method ballast: the papers' methods start anew", ctx)


def _recorded(instance: "ExpertInstance", given: dict[str, Any]) -> "ExpertInstance":
    """Take loads and transitions from an engine's recording; all else stays as FILE says."""
    from dataclasses import replace

    from solver.domain.errors import InputError
    from telemetry.experts.recording import thinned
    from telemetry.experts.sglang_recording import read_sglang_recording
    from telemetry.experts.tensorrt_recording import read_tensorrt_recording
    from telemetry.experts.token_sample_file import read_token_sample

    paths = given["recordings"]
    if given["recording_format"] == "sglang":
        recording = read_sglang_recording(*paths, experts=instance.experts)
    elif len(paths) > 1:
        raise click.UsageError("only sglang recordings come in several files")
    elif given["recording_format"] == "tensorrt-llm":
        recording = read_tensorrt_recording(paths[0], experts=instance.experts)
    else:
        recording = read_token_sample(paths[0], experts=instance.experts)
    if recording.load.shape != instance.load.shape:
        raise InputError(
            f"{recording.layers} layers of {recording.experts} experts",
            where=recording.source,
            right=f"{instance.name} has {instance.layers} of {instance.experts}: is it another model's recording?",
        )
    sample = recording.token_sample
    return replace(
        instance,
        load=recording.load,
        top_k=recording.top_k or instance.top_k,
        transitions=recording.transitions,
        token_sample=None if sample is None else thinned(sample, SAMPLED_TOKENS),
        load_windows=recording.windows,
    )


SAMPLED_TOKENS = 2048


def _score(instance: "ExpertInstance", p2l: "Slots", previous: "Slots | None", given: dict[str, Any]) -> None:
    from controller.cli.expert_answers import print_score, score_answer
    from controller.cli.output import announce_compilation, print_structured
    from solver.experts.score import move_between, score_map

    announce_compilation()
    score = score_map(instance, p2l)
    move = None
    if previous is not None:
        now_s = score.objective_s(given["communication"])
        old_s = score_map(instance, previous).objective_s(given["communication"])
        move = move_between(instance, previous, p2l, saved_s=old_s - now_s)
    if given["output"] == "table":
        print_score(instance, score, move)
        return
    answer = score_answer(instance, score, move, communication=given["communication"], p2l=p2l)
    print_structured(answer, given["output"])
