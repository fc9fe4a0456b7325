"""``ballast plan``: ask the planner for a decision and print it, without touching any cluster."""

import click

from controller.cli.lazy import LazyGroup

QUESTIONS = {
    "experts": "controller.cli.plan_experts:experts",
    "fleet": "controller.cli.plan_fleet:fleet",
    "gpus": "controller.cli.plan_gpus:gpus",
    "power": "controller.cli.plan_power:power",
}


@click.command(cls=LazyGroup, members=QUESTIONS)
def plan() -> None:
    """Decide: which GPUs run each model, how prefill and decode split, where experts sit, what power holds.

    Example: ballast plan gpus instance.json
    """
