"""Metrics and health of the operator over HTTP: ``/metrics``, ``/healthz``, ``/readyz``.

It exists so that autoscalers can follow ``ballast_desired_replicas``, alerts can be raised, and the kubelet restarts a
process that no longer sees or acts. It decides nothing.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from solver.domain.cluster import ServiceDecision

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


Row = tuple[tuple[str, ...], float]
"""Values of the labels, and the value."""


class Table(Gauge):
    """A gauge whose rows are made when somebody asks: with thousands of services they are many, and seldom read."""

    rows: Callable[[], Iterable[Row]] = staticmethod(lambda: ())

    def collect(self) -> Iterable[Metric]:
        """Return all rows as they are now."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, value in self.rows():
            family.add_metric(labels, value)
        return [family]


@dataclass(slots=True)
class Metrics:
    """All metrics of one process, in a registry of its own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    reconcile: Histogram = field(init=False)
    errors: Counter = field(init=False)
    solver: Histogram = field(init=False)
    gap: Table = field(init=False)
    plan_age: Table = field(init=False)
    desired: Table = field(init=False)
    ready: Table = field(init=False)
    cost: Table = field(init=False)
    demand: Table = field(init=False)
    forecast: Table = field(init=False)
    telemetry_age: Table = field(init=False)
    leader: Gauge = field(init=False)
    pool: Table = field(init=False)
    store_ready: Gauge = field(init=False)
    rehearsal_runs: Counter = field(init=False)
    rehearsal_seconds: Histogram = field(init=False)
    rehearsal_attainment: Table = field(init=False)
    rehearsal_waiting: Table = field(init=False)
    expert_objective: Table = field(init=False)
    expert_lower_bound: Table = field(init=False)
    expert_gap: Table = field(init=False)
    expert_balance: Table = field(init=False)
    expert_moved: Table = field(init=False)
    expert_net_gain: Table = field(init=False)
    expert_load_age: Table = field(init=False)
    expert_solve: Table = field(init=False)
    expert_condition: Table = field(init=False)
    power_watts: Table = field(init=False)
    power_budget: Table = field(init=False)
    power_theta: Table = field(init=False)
    power_worst_theta: Table = field(init=False)
    power_worst: Table = field(init=False)
    power_full: Table = field(init=False)
    power_nodes: Table = field(init=False)
    power_brakes: Table = field(init=False)
    power_sample_age: Table = field(init=False)
    power_cap: Table = field(init=False)
    power_capped: Table = field(init=False)
    power_condition: Table = field(init=False)
    power_round: Table = field(init=False)

    def __post_init__(self) -> None:
        registry = self.registry
        service = ("namespace", "name")
        self.reconcile = Histogram(
            "ballast_reconcile_duration_seconds", "One round of the loop.", registry=registry, buckets=SECONDS
        )
        self.errors = Counter(
            "ballast_reconcile_errors_total", "Rounds that failed.", ("reason",), registry=registry
        )
        self.solver = Histogram(
            "ballast_solver_duration_seconds",
            "One decision for all services.",
            ("problem", "status"),
            registry=registry,
            buckets=SECONDS,
        )
        self.gap = Table("ballast_solver_gap_ratio", "Proved gap of a plan.", service, registry=registry)
        self.plan_age = Table("ballast_plan_age_seconds", "Age of a plan.", service, registry=registry)
        self.desired = Table(
            "ballast_desired_replicas",
            "Replicas that the plan in force wants.",
            (*service, "variant", "accelerator", "target"),
            registry=registry,
        )
        self.ready = Table(
            "ballast_ready_replicas", "Replicas that are ready.", (*service, "variant"), registry=registry
        )
        self.cost = Table("ballast_cost_usd_per_hour", "Cost of what runs.", service, registry=registry)
        self.demand = Table("ballast_demand_rps", "Requests per second.", service, registry=registry)
        self.forecast = Table(
            "ballast_forecast_rps", "Requests per second planned for by forecast.", service, registry=registry
        )
        self.telemetry_age = Table(
            "ballast_telemetry_age_seconds",
            "Age of the last sample.",
            (*service, "source"),
            registry=registry,
        )
        self.leader = Gauge("ballast_leader", "1 on the leader.", registry=registry)
        self.pool = Table(
            "ballast_pool_gpus",
            "GPUs of a pool: schedulable for us, and free.",
            ("pool", "state"),
            registry=registry,
        )
        self.store_ready = Gauge("ballast_store_ready", "1 while history can be written.", registry=registry)

        self._of_rehearsals(registry)
        self._of_experts(registry)
        self._of_power(registry)

    def _of_rehearsals(self, registry: CollectorRegistry) -> None:
        self.rehearsal_runs = Counter(
            "ballast_rehearsal_runs_total",
            "Plans that were rehearsed, by what came of it.",
            ("reason",),
            registry=registry,
        )
        self.rehearsal_seconds = Histogram(
            "ballast_rehearsal_duration_seconds", "One rehearsal.", registry=registry, buckets=SECONDS
        )
        self.rehearsal_attainment = Table(
            "ballast_rehearsal_attainment_ratio",
            "Share of the requests inside the SLO in the last rehearsal.",
            ("namespace", "name", "fleet"),
            registry=registry,
        )
        self.rehearsal_waiting = Table(
            "ballast_rehearsal_waiting", "Plans that wait for their rehearsal.", registry=registry
        )

    def _of_experts(self, registry: CollectorRegistry) -> None:
        def table(name: str, documentation: str, *labels: str) -> Table:
            name = f"ballast_expert_{name}"
            return Table(name, documentation, ("namespace", "name", *labels), registry=registry)

        self.expert_objective = table("objective_seconds", "Time per window of the map decided on.")
        self.expert_lower_bound = table("lower_bound_seconds", "No map takes less.")
        self.expert_gap = table("gap_ratio", "Proved gap of the map.")
        self.expert_balance = table("balance_max_ratio", "Fullest GPU over the mean, in the worst layer.")
        self.expert_moved = table("moved_ratio", "Part of all holdings that the last decision moves.")
        self.expert_net_gain = table("net_gain_seconds", "What the last move brings, less what it costs.")
        self.expert_load_age = table("load_age_seconds", "Age of the last recording that was read.")
        self.expert_solve = table("solve_seconds", "How long the last solve took.")
        self.expert_condition = table("condition", "1 while a condition is true, 0 while false.", "condition")

    def _of_power(self, registry: CollectorRegistry) -> None:
        def table(name: str, documentation: str, *labels: str) -> Table:
            return Table(f"ballast_power_{name}", documentation, ("domain", *labels), registry=registry)

        self.power_watts = table("watts", "Draw of the last window.")
        self.power_budget = table("budget_watts", "Budget now.")
        self.power_theta = table("theta_ratio", "Thermal state of the breaker.")
        self.power_worst_theta = table("worst_theta_ratio", "The warmest it can get before an order acts.")
        self.power_worst = table("worst_watts", "Worst case of the clocks in force and under way.")
        self.power_full = table("full_watts", "Largest draw without caps.")
        self.power_nodes = table("nodes", "Servers that count.")
        self.power_brakes = table("brakes", "Brakes pulled by this leader.")
        self.power_sample_age = table("sample_age_seconds", "Age of the last sample.")
        self.power_cap = table("cap_mhz", "Highest clock ordered.", "class")
        self.power_capped = table("capped_seconds", "Time below the highest clock, by this leader.", "class")
        self.power_condition = table("condition", "1 while a condition is true, 0 while false.", "condition")
        self.power_round = Table(
            "ballast_power_round_seconds", "How long the last round of all domains took.", registry=registry
        )

    def rehearsed(self, reason: str, seconds: float) -> None:
        """Record a rehearsal; one that came to nothing took no time worth noting."""
        self.rehearsal_runs.labels(reason).inc()
        if seconds > 0.0:
            self.rehearsal_seconds.observe(seconds)

    def solved(self, decisions: tuple[ServiceDecision, ...] | None, seconds: float) -> None:
        """Record a decision."""
        status = "failed" if decisions is None else "done"
        self.solver.labels("services", status).observe(seconds)


@dataclass(slots=True, kw_only=True)
class Page:
    """The HTTP server; ``healthy`` and ``ready`` return an empty text or what is wrong."""

    host: str
    port: int
    metrics: Metrics
    healthy: Callable[[], str]
    ready: Callable[[], str]
    server: ThreadingHTTPServer | None = None

    def start(self) -> int:
        """Listen in a thread; returns the port."""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._send(200, generate_latest(page.metrics.registry), CONTENT_TYPE_LATEST)
                elif path in {"/healthz", "/readyz"}:
                    wrong = page.healthy() if path == "/healthz" else page.ready()
                    self._send(503 if wrong else 200, (wrong or "ok").encode() + b"\n", "text/plain")
                else:
                    self._send(404, b"no such page; there are /metrics, /healthz and /readyz\n", "text/plain")

            def _send(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Keep probes out of the log."""

        self.server = ThreadingHTTPServer((self.host, self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, name="page", daemon=True).start()
        return int(self.server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
