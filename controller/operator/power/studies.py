"""What recorded power says of a PowerDomain: how many servers its budget holds, and thresholds for POLCA.

It exists so that a status holds the answer of `ballast plan power` for the very servers that the domain has, from the
power that the history keeps. Nothing is made up: minutes in which a server was not heard are left out, time in which
clocks were held down says nothing of what would have been drawn, and too little is told as too little. It decides with
`solver.power.admission` and `solver.power.policies.training`; `controller.operator.power.study_desk` has it done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from controller.operator.conditions import Finding
from controller.operator.power.figures import SERVERS_FIT, TRAINED
from controller.operator.power.row import clock_limits, server_of
from controller.operator.power.tree import Place
from controller.operator.times import written_time
from controller.resources.power_domain import PowerDomainSpec, PowerMode
from solver.domain.power import PowerRow, Priority
from solver.domain.power_trace import Floats, RowPowerTrace, ServerPowerTrace
from solver.power.admission import Admission, AdmissionQuestion, Admitted, admit_servers
from solver.power.policies.training import train_polca
from telemetry.store.power_table import PowerTable, table_of
from telemetry.store.power_windows import DOMAIN, PowerWindow
from telemetry.store.store import POWER_LEVELS

WINDOW_S = POWER_LEVELS[0].window_s
LEAST_HOURS = 24.0
"""The busiest hours of a day have to be in it."""
MOST_CAPPED_RATIO = 0.01
"""Of the time that is judged: more, and what would have been drawn is not known."""
RECORDED_RATIO = 0.9
"""Of the time that training asks for."""
NO_HISTORY, TOO_LITTLE, CAPPED = "NoHistory", "NotEnoughRecorded", "CappedMeanwhile"
NOT_YET, FAILED, DONE = "NotYetJudged", "Failed", "Judged"


class Recorded(Protocol):
    """The part of a store that is read."""

    def power_windows(
        self, domain: str, *, window_s: int, since_s: float, until_s: float, node: str | None = None
    ) -> Any:
        """Give windows in the order of time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What thresholds are trained for."""

    window_s: float
    budget_w: float
    clock_latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyQuestion:
    """What is to be known of a domain; equal questions have equal answers for a while."""

    domain: str
    nodes: tuple[str, ...]
    priorities: tuple[Priority, ...]
    """By node."""
    admission: AdmissionQuestion | None = None
    horizon_s: float = 0.0
    training: Training | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: what the status gets, or why there is none."""

    reason: str = NOT_YET
    message: str = ""
    told: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The answers to a question."""

    admission: Answer = Answer()
    training: Answer = Answer()


def question_of(name: str, spec: PowerDomainSpec, place: Place, row: PowerRow) -> StudyQuestion:
    """Ask of the history what `ballast plan power` would be asked of a file."""
    server = server_of(spec)  # the history keeps servers without their share of what is drawn always
    static_w = spec.members.static_watts if spec.members else 0.0
    limits = [clock_limits(each, server) for each in sorted(spec.classes, key=lambda each: each.priority)]
    admission = training = None
    if spec.admission is not None:
        admission = AdmissionQuestion(
            budget_w=place.contract_w - static_w,
            risk_minutes_per_year=spec.admission.risk_minutes_per_year,
            curve=row.curve,
            server=server,
            low_floor_mhz=limits[0][0],
            high_floor_mhz=limits[-1][0],
            # columns are in the order of names, as the nodes of a place are
            priorities=row.priorities,
            recourse_s=row.recourse_s(row.clock_latency_s),
        )
    if spec.train is not None:
        training = Training(
            window_s=3600.0 * spec.train.window_hours,
            budget_w=place.contract_w,
            clock_latency_s=row.clock_latency_s,
        )
    return StudyQuestion(
        domain=name,
        nodes=place.nodes,
        priorities=row.priorities,
        admission=admission,
        horizon_s=0.0 if spec.admission is None else 3600.0 * spec.admission.horizon_hours,
        training=training,
    )


def servers_fit(
    found: Study, admission: Mapping[str, Any] | None, spec: PowerDomainSpec, servers: int
) -> Finding:
    """Say whether the budget holds the servers that there are."""
    if admission is None:
        answer = found.admission
        return Finding(type=SERVERS_FIT, status=None, reason=answer.reason, message=answer.message)
    capping = spec.mode is PowerMode.AUTO
    most = int(admission.get("serversWithCapping" if capping else "serversWithoutCapping") or 0)
    fits = servers <= most
    how = "with capping" if capping else "without capping, and mode Auto is needed for more"
    return Finding(
        type=SERVERS_FIT,
        status=fits,
        reason="WithinAdmission" if fits else "TooManyServers",
        message="" if fits else f"{servers} servers; the budget holds {most} {how}",
    )


def thresholds_trained(found: Study, *, in_force: bool) -> Finding:
    """Say whether thresholds from recorded power are in force, and why not."""
    if in_force:
        return Finding(type=TRAINED, status=True, reason="Trained")
    answer = found.training
    why = answer.message or ("not yet looked" if answer.reason == NOT_YET else answer.reason)
    return Finding(
        type=TRAINED,
        status=None,
        reason=answer.reason,
        message=f"{why}; until then the published thresholds",
    )


def study(store: Recorded, question: StudyQuestion, *, until_s: float) -> Study:
    """Answer from what a store has recorded before ``until_s``, seconds since 1970."""
    admission = training = Answer()
    if question.admission is not None:
        windows = store.power_windows(
            question.domain,
            window_s=WINDOW_S,
            since_s=until_s - question.horizon_s,
            until_s=until_s - WINDOW_S,
        )
        admission = _admission(windows, question, question.admission)
    if question.training is not None:
        windows = store.power_windows(
            question.domain,
            window_s=WINDOW_S,
            since_s=until_s - question.training.window_s,
            until_s=until_s - WINDOW_S,
            node=DOMAIN,
        )
        training = _training(list(windows), question, question.training)
    return Study(admission=admission, training=training)


# -- how many servers ---------------------------------------------------------------------------------------------


def _admission(windows: Any, question: StudyQuestion, asked: AdmissionQuestion) -> Answer:
    """Judge the whole minutes in which every server of the domain was heard."""
    table = table_of(
        (each for each in windows if each.node == DOMAIN or each.node in question.nodes),
        domain=question.domain,
        window_s=WINDOW_S,
    )
    absent = [node for node in question.nodes if table is None or node not in table.servers]
    if table is None or absent:
        return Answer(reason=TOO_LITTLE, message=f"no power of {absent[0] if absent else 'its servers'}")
    used = _whole_minutes(table)
    hours = used.size * WINDOW_S / 3600.0
    if hours < LEAST_HOURS:
        return Answer(
            reason=TOO_LITTLE,
            message=f"{hours:.1f} h with all servers are recorded of {LEAST_HOURS:g} h at least",
        )
    capped = float(table.capped_s[used].sum()) / (used.size * WINDOW_S)
    if capped > MOST_CAPPED_RATIO:
        return Answer(reason=CAPPED, message=_held_down(capped))
    watts = table.server_w[used]
    t_s = np.arange(used.size, dtype=np.float64) * WINDOW_S
    found = admit_servers(
        ServerPowerTrace(
            name=question.domain,
            t_s=t_s,
            period_s=float(WINDOW_S),
            server_w=watts,
            servers=table.servers,
        ),
        asked,
    )
    row_w: Floats = watts.sum(axis=1)
    lows = np.array(
        [question.priorities[question.nodes.index(name)] is Priority.LOW for name in table.servers]
    )
    # A recording judges no more servers than it has; beyond, more of the same kind are assumed.
    beyond = admit_servers(
        RowPowerTrace(
            name=question.domain,
            t_s=t_s,
            period_s=float(WINDOW_S),
            row_w=row_w,
            servers=len(table.servers),
            low_w=watts[:, lows].sum(axis=1),
        ),
        asked,
    )
    over = row_w * (1.0 + found.peak_allowance_ratio) > asked.budget_w
    told = _told(found, beyond, len(table.servers))
    told["expectedCapSeconds"] = round(86_400.0 * float(over.mean()), 1)
    told["hours"] = round(hours, 1)
    told["until"] = written_time(table.at_s(int(used[-1]) + 1))
    return Answer(reason=DONE, told=told)


def _held_down(ratio: float) -> str:
    return (
        f"clocks were held down in {ratio:.1%} of the recorded time: what would have been drawn is not known;"
        " record in mode Recommend"
    )


def _whole_minutes(table: PowerTable) -> Any:
    """Return the windows, by number, of minutes in which every server is known in every window."""
    known = ~np.isnan(table.server_w).any(axis=1)
    minute = (table.start_s + np.arange(table.windows) * WINDOW_S) // 60
    first = int(minute[0])
    whole = np.bincount(minute - first, weights=known, minlength=1) >= 60 / WINDOW_S - 0.5
    return np.flatnonzero(whole[minute - first])


def _told(found: Admission, beyond: Admission, servers: int) -> dict[str, Any]:
    """Put the answer for the recorded servers together with that for more of their kind."""

    def pick(one: Admitted | None, other: Admitted | None) -> Admitted:
        if one is None or other is None:
            raise RuntimeError("both recordings tell priorities")
        return other if one.servers >= servers else one

    without, floors = pick(found.without, beyond.without), pick(found.at_floors, beyond.at_floors)
    by_breaker = found.breaker_servers < floors.servers
    told: dict[str, Any] = {
        "servers": servers,
        "serversWithoutCapping": without.servers,
        "serversWithCapping": min(floors.servers, found.breaker_servers),
        "binding": "breaker" if by_breaker else "risk at the floors",
        "message": "; ".join(found.doubts)[:4096],
    }
    for name, interval in (
        ("interval", floors.interval_90),
        ("intervalWithoutCapping", without.interval_90),
    ):
        if interval is not None:
            most = found.breaker_servers if name == "interval" else max(interval)
            told[name] = {"low": min(interval[0], most), "high": min(interval[1], most)}
    return told


# -- thresholds ---------------------------------------------------------------------------------------------------


def _training(windows: list[PowerWindow], question: StudyQuestion, asked: Training) -> Answer:
    """Take thresholds from the draw of the domain as a whole: from means to the largest samples that follow."""
    known = [each for each in windows if each.covered_s >= 0.5 * WINDOW_S]
    hours, least = len(known) * WINDOW_S / 3600.0, RECORDED_RATIO * asked.window_s / 3600.0
    free = [each for each in known if not each.capped_s]
    capped = 1.0 - len(free) / len(known) if known else 0.0
    if hours < least:
        return Answer(reason=TOO_LITTLE, message=f"{hours:.1f} h are recorded of {least:.1f} h at least")
    if capped > MOST_CAPPED_RATIO:
        return Answer(reason=CAPPED, message=_held_down(capped))
    first_s = free[0].start_s
    count = (free[-1].start_s - first_s) // WINDOW_S + 1
    mean_w, peak_w = np.full(count, math.nan), np.full(count, math.nan)
    for each in free:
        at = (each.start_s - first_s) // WINDOW_S
        mean_w[at], peak_w[at] = each.mean_w, each.max_w
    servers = len(question.nodes)
    trained = train_polca(
        mean_w,
        peak_w=peak_w,
        period_s=float(WINDOW_S),
        budget_w=asked.budget_w,
        servers_in_trace=servers,
        servers=servers,
        clock_latency_s=asked.clock_latency_s,
    )
    return Answer(
        reason=DONE,
        told={
            "t1": trained.policy.t1_ratio,
            "t2": trained.policy.t2_ratio,
            "uncapMargin": trained.policy.uncap_margin_ratio,
            "riseRatio": round(trained.rise_ratio, 4),
            "budgetWatts": float(round(asked.budget_w)),
            "servers": servers,
            "hours": round(hours, 1),
            "until": written_time(free[-1].start_s + WINDOW_S),
        },
    )
