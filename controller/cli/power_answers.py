"""How many servers a domain holds, for programs and people: the JSON answer ``power-admission/1`` and a table."""

from typing import Any

import click

from controller.cli.answers import ballast_version, rounded
from controller.cli.exit_codes import ExitCode
from controller.cli.output import TABLE_WIDTH, print_table
from controller.power_planning import Judged, PlannedPower
from solver.power.admission import Admitted

SCHEMA = "power-admission/1"


def power_answer(planned: PlannedPower, *, timings: bool = True) -> dict[str, Any]:
    """Write ``power-admission/1``; without timings equal runs give equal bytes."""
    admission, question = planned.admission, planned.admission.question
    without, caps = admission.without, planned.servers_with_capping is not None
    return {
        "schema": SCHEMA,
        "version": ballast_version(),
        "trace": admission.trace,
        "budget_w": rounded(question.budget_w),
        "risk_minutes_per_year": rounded(question.risk_minutes_per_year),
        "servers_without_capping": planned.servers_without_capping,
        "servers_with_capping": planned.servers_with_capping,
        "interval_90": _pair(without.interval_90),
        "binding": admission.binding if caps else None,
        "expected_over_budget_s_per_year": rounded(60.0 * without.risk_minutes_per_year),
        "without_capping": _admitted(without),
        "with_capping": None
        if not caps or admission.at_floors is None
        else {
            "servers_by_risk": admission.at_floors.servers,
            "servers_by_breaker": admission.breaker_servers,
            **{name: value for name, value in _admitted(admission.at_floors).items() if name != "servers"},
            "interval_90": _pair(admission.interval_with_capping),
            "low_floor_mhz": question.low_floor_mhz,
            "high_floor_mhz": question.high_floor_mhz,
        },
        "breaker": {
            "curve": question.curve.name,
            "tau_s": rounded(question.curve.tau_s),
            "trip_ratio": rounded(question.curve.trip_ratio),
            "recourse_s": rounded(question.recourse_s),
        },
        "minutes": admission.minutes,
        "peak_allowance_ratio": rounded(admission.peak_allowance_ratio),
        "doubts": list(admission.doubts),
        "policy": planned.question.policy,
        "servers_within_slo": planned.servers_within_slo,
        "simulated": [_judged(planned, judged) for judged in planned.simulated],
        **({"solve_s": round(planned.solve_s, 6)} if timings else {}),
    }


def power_exit_code(planned: PlannedPower) -> int:
    """0; 3 where no server fits or the simulation missed the SLO."""
    most = planned.servers_without_capping
    if planned.servers_with_capping is not None:
        most = max(most, planned.servers_with_capping)
    missed = most == 0 or any(judged.missed for judged in planned.simulated[:1])
    return ExitCode.MISSED if missed else ExitCode.DONE


def print_power(planned: PlannedPower, *, timings: bool) -> None:
    """Print the answer on stdout."""
    admission, question = planned.admission, planned.admission.question
    took = f" in {planned.solve_s:.2f} s" if timings else ""
    rows = [("without capping", *_cells(admission.without, admission.without.servers))]
    if planned.servers_with_capping is not None and admission.at_floors is not None:
        floors = f"with capping, floors {question.low_floor_mhz}/{question.high_floor_mhz} MHz"
        rows.append((floors, *_cells(admission.at_floors, planned.servers_with_capping)))
        if planned.servers_with_capping < admission.at_floors.servers:
            rows[-1] = (*rows[-1][:2], "-", "-", _span(admission.interval_with_capping))
    print_table(
        f"Servers under {question.budget_w / 1000:g} kW, at most {question.risk_minutes_per_year:g} min per year"
        f" over it ({admission.minutes:,} minutes judged{took})",
        ("", "servers", "min/year over", "with one more", "90 % interval"),
        rows,
        right=range(1, 5),
    )
    if planned.servers_with_capping is not None:
        _say("Binding", f"{admission.binding} (the breaker alone allows {admission.breaker_servers})")
    elif planned.question.policy != "none":
        _say("With capping", "not told: the recording has no low_priority_w")
    _say(
        "Breaker",
        f"{question.curve.name}, from full load, {question.recourse_s:g} s until an order answers the worst jump",
    )
    fit = admission.without.pareto
    if fit.shape is not None:
        _say(
            "Tail",
            f"a generalised Pareto has shape {fit.shape:+.2f} and would allow {fit.servers} without capping",
        )
    for doubt in admission.doubts:
        _say("Doubt", doubt)
    if not planned.simulated:
        return
    names = [target.name for target in planned.targets]
    print_table(
        f"Simulated with policy {planned.question.policy}: increase of latency over the row without policy",
        ("servers", *names, "over budget", "brakes", "trips", "guarantee", "SLO"),
        [
            (
                judged.servers,
                *(f"{100 * value:+.1f} %" for value in judged.increases),
                f"{judged.seconds_over_budget:,} s",
                f"{judged.brakes:,}",
                judged.trips,
                "held" if judged.guarantee_held else "LOST",
                "missed" if judged.missed else "met",
            )
            for judged in sorted(planned.simulated, key=lambda judged: -judged.servers)
        ],
        right=range(len(names) + 4),
    )
    limits = ", ".join(f"{target.name} {100 * target.limit_ratio:+g} %" for target in planned.targets)
    _say(
        "SLO",
        f"{limits}, no brake, no trip, all completed: up to {planned.servers_within_slo} servers keep it",
    )


def _cells(admitted: Admitted, servers: int) -> tuple[object, ...]:
    more = admitted.next_risk_minutes_per_year
    return (
        servers,
        f"{admitted.risk_minutes_per_year:.3g}",
        "no more recorded" if more is None else f"{more:.3g}",
        _span(admitted.interval_90),
    )


def _span(interval: tuple[int, int] | None) -> str:
    return "-" if interval is None else f"{interval[0]} to {interval[1]}"


def _pair(interval: tuple[int, int] | None) -> list[int] | None:
    return None if interval is None else list(interval)


def _admitted(admitted: Admitted) -> dict[str, Any]:
    return {
        "servers": admitted.servers,
        "risk_minutes_per_year": rounded(admitted.risk_minutes_per_year),
        "next_risk_minutes_per_year": rounded(admitted.next_risk_minutes_per_year),
        "interval_90": _pair(admitted.interval_90),
        "generalised_pareto": {
            "shape": rounded(admitted.pareto.shape),
            "shape_interval_90": None
            if admitted.pareto.shape_interval_90 is None
            else [rounded(shape) for shape in admitted.pareto.shape_interval_90],
            "servers": admitted.pareto.servers,
            "interval_90": _pair(admitted.pareto.interval_90),
        },
    }


def _judged(planned: PlannedPower, judged: Judged) -> dict[str, Any]:
    return {
        "servers": judged.servers,
        "slo_met": not judged.missed,
        "missed": list(judged.missed),
        "targets": [
            {
                "name": target.name,
                "increase_ratio": rounded(value),
                "limit_ratio": rounded(target.limit_ratio),
            }
            for target, value in zip(planned.targets, judged.increases, strict=True)
        ],
        "seconds_over_budget": judged.seconds_over_budget,
        "duration_s": judged.duration_s,
        "brakes": judged.brakes,
        "trips": judged.trips,
        "theta_max": rounded(judged.theta_max),
        "guarantee_held": judged.guarantee_held,
        "completed_ratio": rounded(judged.completed_ratio),
    }


def _say(name: str, text: str) -> None:
    click.echo(click.wrap_text(f"{name}: {text}", TABLE_WIDTH, subsequent_indent="  "))
