"""``ballast plan``: ask the planner for a decision and print it, without touching any cluster."""

import click

from controller.cli.lazy import LazyGroup

QUESTIONS = {
    "experts": "controller.cli.plan_experts:experts",
    "gpus": "controller.cli.plan_gpus:gpus",
}


@click.command(cls=LazyGroup, members=QUESTIONS)
def plan() -> None:
    """Decide: which GPUs to run each model on, where experts sit.

    Example: ballast plan gpus instance.json
    """
