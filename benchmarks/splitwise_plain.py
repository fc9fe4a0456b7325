"""A second, plain implementation of the phase-splitting peer's rules, with objects and lists.

It exists so that the compiled kernel has an opinion to agree with where no recorded result lies (tests use it), and a
peer's method to be compared with. Every rule stands in the order of splitwise-sim's own; nothing is optimised.
"""

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from simulator.splitwise.machines import STEP_KNOTS_TOKENS, SplitwiseFleet, SplitwiseScheduler
from solver.domain.trace import Requests


@dataclass(eq=False)
class Task:
    request: "Request"
    is_prompt: bool
    state: str = "queued"
    pre: int = 0

    @property
    def tokens(self) -> int:
        return self.request.prompt if self.is_prompt else 1

    @property
    def memory(self) -> int:
        request = self.request
        return request.kv * (request.prompt + 1 if self.is_prompt else request.output - 1)

    @property
    def key(self) -> tuple[int, float]:
        return (self.pre, self.request.arrival)


@dataclass(eq=False)
class Request:
    number: int
    arrival: float
    prompt: int
    output: int
    kv: int
    memory: int = 0
    generated: int = 0
    ttft: float | None = None
    e2e: float | None = None
    scheduled: float | None = None
    preempted: int = 0
    prompt_done: bool = False
    prompt_at: Any = None
    token_at: Any = None

    def __post_init__(self) -> None:
        self.prompt_task = Task(self, is_prompt=True)
        self.token_task = Task(self, is_prompt=False)


@dataclass(eq=False)
class Machine:
    number: int
    prompt_s: tuple[float, ...]
    token_s: tuple[float, ...]
    capacity: int
    mem: int
    home: str
    watts: tuple[float, float, float]
    list_name: str = ""
    sched_mem: int = 0
    sched_pend: int = 0
    batch: list[Task] = field(default_factory=list)
    batch_tokens: int = 0
    pending: list[Task] = field(default_factory=list)
    prompt_queue: list[Task] = field(default_factory=list)
    blocked: list[Task] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    cut: bool = False
    d: float = 0.0
    n: int = 0
    end: float = 0.0
    event: int = -1
    started: float = 0.0
    busy: float = 0.0
    busy_joules: float = 0.0

    def head(self, request: Request) -> Task:
        here = request.prompt_at is self and not request.prompt_done
        return request.prompt_task if here else request.token_task


def at(knots: tuple[int, ...], values: tuple[float, ...], q: float) -> float:
    i = min(max(sum(x < q for x in knots), 1), len(knots) - 1)
    slope = (values[i] - values[i - 1]) / (knots[i] - knots[i - 1])
    return slope * (q - knots[i - 1]) + values[i - 1]


class Plain:
    """One run; `run` returns the requests."""

    def __init__(self, machines: list[Machine], fleet: SplitwiseFleet) -> None:
        self.machines = machines
        self.fleet = fleet
        self.lists: dict[str, list[Machine]] = {"prompt": [], "mixed": [], "token": []}
        for machine in machines:
            machine.list_name = machine.home
            machine.sched_mem = machine.mem
            self.lists[machine.home].append(machine)
        self.events: list[tuple[float, int, int, Any]] = []
        self.count = itertools.count()
        self.counters: Counter[str] = Counter()
        self.end = 0.0

    def run(self, requests: list[Request]) -> None:
        for request in requests:
            self.push(request.arrival, 0, request)
        while any(self.changes_something(*event) for event in self.events):
            self.now, kind, number, what = heapq.heappop(self.events)
            if kind == 0:
                self.route(what)
            elif kind == 1:
                action, request = what
                (self.start_transfer if action == "start" else self.end_transfer)(request)
            elif what.event == number:
                self.end_iteration(what)

    @staticmethod
    def changes_something(_time: float, kind: int, number: int, what: Any) -> bool:
        """Whether an event is more than one more try to start a transfer, or the old end of an iteration cut short."""
        if kind == 1:
            return bool(what[0] == "end")
        return kind == 0 or bool(what.event == number)

    def push(self, time: float, kind: int, what: Any) -> int:
        number = next(self.count)
        heapq.heappush(self.events, (time, kind, number, what))
        return number

    # 4.3
    def route(self, request: Request) -> None:
        kv_prompt, kv_token = request.prompt_task.memory, request.token_task.memory
        if self.fleet.scheduler is SplitwiseScheduler.TOKEN_JSQ:
            target = min(self.machines, key=lambda machine: machine.sched_pend)
            target.sched_pend += request.prompt + 1
            source = destination = target
        else:
            source, destination = self.targets(request, kv_prompt + kv_token)
            if source is destination:
                source.sched_mem += kv_prompt + kv_token
            else:
                source.sched_mem += kv_prompt
                destination.sched_mem += kv_prompt + kv_token
            source.sched_pend += request.prompt
            destination.sched_pend += 1
        request.prompt_at, request.token_at = source, destination
        self.arrive(source, request.prompt_task)
        if source is destination and request.output > 1:
            self.arrive(source, request.token_task)

    def targets(self, request: Request, need: int) -> tuple[Machine, Machine]:
        lists = self.lists
        source = destination = None
        for name in ("prompt", "mixed"):
            if source is None and lists[name]:
                best = min(lists[name], key=lambda machine: machine.sched_pend)
                if not (best.pending and best.sched_pend + request.prompt > self.fleet.prompt_limit_tokens):
                    source = best
        for name in ("token", "mixed"):
            if destination is None and lists[name]:
                best = min(lists[name], key=lambda machine: machine.sched_mem)
                if best.sched_mem + need < best.capacity:
                    destination = best
        if source is None and lists["token"]:
            source = min(lists["token"], key=lambda machine: machine.sched_pend)
            self.move(source, "mixed")
            self.counters["moves_to_mixed"] += 1
        if destination is None and lists["prompt"]:
            destination = min(lists["prompt"], key=lambda machine: machine.sched_mem)
            self.move(destination, "mixed")
            self.counters["moves_to_mixed"] += 1
        if source is None or destination is None:
            everyone = lists["prompt"] + lists["mixed"] + lists["token"]
            source = destination = min(everyone, key=lambda machine: machine.sched_pend)
        return source, destination

    def move(self, machine: Machine, name: str) -> None:
        self.lists[machine.list_name].remove(machine)
        self.lists[name].append(machine)
        machine.list_name = name

    # 4.4
    def arrive(self, machine: Machine, task: Task) -> None:
        request = task.request
        if request not in machine.requests:
            place = len(machine.requests)
            while place and machine.requests[place - 1].arrival > request.arrival:
                place -= 1
            machine.requests.insert(place, request)
        self.insert(machine, task)
        if task.is_prompt:
            machine.prompt_queue.append(task)
        if not machine.batch:
            if machine.mem + task.memory <= machine.capacity:
                self.start_iteration(machine)
            return
        decodes = sum(not t.is_prompt for t in machine.batch)
        fits = (
            len(machine.batch) < self.fleet.max_batch
            and machine.batch_tokens + task.tokens <= self.fleet.max_batch_tokens
        )
        displaces = task.is_prompt and decodes > 0
        displaces = (
            displaces and machine.batch_tokens - decodes + request.prompt <= self.fleet.max_batch_tokens
        )
        if fits or displaces:
            self.cut(machine)

    def insert(self, machine: Machine, task: Task) -> None:
        low, high = 0, len(machine.pending)
        while low < high:
            middle = (low + high) // 2
            if task.key < machine.pending[middle].key:
                high = middle
            else:
                low = middle + 1
        machine.pending.insert(low, task)

    # 4.5
    def cut(self, machine: Machine) -> bool:
        if machine.cut or any(task.is_prompt for task in machine.batch):
            return False
        machine.cut = True
        start = machine.end - machine.d * machine.n
        elapsed = self.now - start
        machine.n = min(machine.n, int(elapsed // machine.d + 1))
        machine.end = self.now + (machine.d * machine.n - elapsed)
        machine.event = self.push(machine.end, 2, machine)
        return True

    # 4.6
    def start_iteration(self, machine: Machine) -> None:
        new: list[Task] = []
        inside: set[int] = set()
        tokens, mem = 0, machine.mem

        def full(task: Task) -> bool:
            return len(new) == self.fleet.max_batch or bool(
                new and tokens + task.tokens > self.fleet.max_batch_tokens
            )

        def take(task: Task) -> None:
            nonlocal tokens
            new.append(task)
            inside.add(task.request.number)
            tokens += task.tokens

        for task in machine.pending:
            if task.pre < self.fleet.max_preemptions or full(task):
                break
            if task.request.number in inside:
                continue
            if task.state == "queued":
                if mem + task.memory > machine.capacity:
                    continue
                mem += task.memory
            take(task)
            self.counters["preempted_4"] += 1
        for task in machine.prompt_queue:
            if full(task):
                break
            if task.request.number in inside:
                continue
            if mem + task.memory > machine.capacity:
                self.counters["memory_stops"] += 1
                break
            mem += task.memory
            take(task)
        for tasks in (machine.blocked, machine.batch):
            for task in tasks:
                if full(task):
                    break
                if task.request.number not in inside:
                    take(task)
        for request in machine.requests:
            if len(new) == self.fleet.max_batch:
                break
            if request.number in inside:
                continue
            task = machine.head(request)
            if full(task):
                break
            if task.state != "preempted":
                if mem + task.memory > machine.capacity:
                    self.counters["memory_stops"] += 1
                    break
                mem += task.memory
            take(task)
        self.commit(machine, new, tokens)

    def commit(self, machine: Machine, new: list[Task], tokens: int) -> None:
        old = machine.batch
        machine.batch_tokens = tokens
        for task in old:
            if task not in new:
                task.state = "preempted"
                task.request.preempted += 1
                self.counters["preemptions"] += 1
                self.insert(machine, task)
                machine.blocked.append(task)
        added = [task for task in new if task not in old]
        machine.batch = [task for task in old if task in new] + added
        for waiting in (machine.pending, machine.blocked, machine.prompt_queue):
            waiting[:] = [task for task in waiting if task not in added]
        for request in machine.requests:
            if machine.head(request) not in machine.batch:
                machine.head(request).pre += 1
        if not machine.batch:
            if not machine.requests and machine.list_name == "mixed" and machine.home != "mixed":
                self.move(machine, machine.home)
                self.counters["moves_back"] += 1
            return
        prompts = [task for task in machine.batch if task.is_prompt]
        if not prompts:
            machine.d = at(STEP_KNOTS_TOKENS, machine.token_s, tokens)
            machine.n = min(task.request.output - 1 - task.request.generated for task in machine.batch)
        else:
            machine.d = at(STEP_KNOTS_TOKENS, machine.prompt_s, tokens)
            if len(prompts) < len(machine.batch):
                machine.d = 1.1 * machine.d
            machine.n = 1
        for task in machine.batch:
            if task.state == "queued":
                machine.mem += task.memory
                task.request.memory += task.memory
                if task.request.scheduled is None:
                    task.request.scheduled = self.now - task.request.arrival
            task.state = "running"
        machine.started = self.now
        machine.end = self.now + machine.d * machine.n
        machine.event = self.push(machine.end, 2, machine)

    # 4.7
    def end_iteration(self, machine: Machine) -> None:
        has_prompt = any(task.is_prompt for task in machine.batch)
        machine.busy += self.now - machine.started
        machine.busy_joules += machine.watts[1 if has_prompt else 2] * (self.now - machine.started)
        for task in machine.batch:
            if not task.is_prompt:
                task.request.generated += machine.n
        done = [t for t in machine.batch if t.is_prompt or t.request.generated == t.request.output - 1]
        machine.batch = [task for task in machine.batch if task not in done]
        for task in done:
            request = task.request
            task.state = "done"
            if task.is_prompt:
                machine.sched_pend -= request.prompt
                request.ttft = self.now - request.arrival
                request.prompt_done = True
                if request.output == 1:
                    self.finish_at_prompt(machine, request)
                elif request.token_at is not machine:
                    machine.requests.remove(request)
                    self.start_transfer(request)
            else:
                machine.sched_pend -= 1
                self.finish(machine, request)
        machine.cut = False
        self.start_iteration(machine)

    def finish_at_prompt(self, machine: Machine, request: Request) -> None:
        request.token_at.sched_pend -= 1
        if request.token_at is not machine:
            request.token_at.sched_mem -= request.memory
        self.finish(machine, request)

    def finish(self, machine: Machine, request: Request) -> None:
        machine.mem -= request.memory
        machine.sched_mem -= request.memory
        machine.requests.remove(request)
        request.e2e = self.now - request.arrival
        self.end = self.now

    # 4.8
    def start_transfer(self, request: Request) -> None:
        destination = request.token_at
        if destination.mem + request.memory <= destination.capacity:
            destination.mem += request.memory
            self.push(
                self.now + request.kv * request.prompt / self.fleet.link_bytes_per_s, 1, ("end", request)
            )
        else:
            self.counters["transfer_retries"] += 1
            self.push(self.now + 1.0, 1, ("start", request))

    def end_transfer(self, request: Request) -> None:
        source, destination = request.prompt_at, request.token_at
        source.mem -= request.memory
        source.sched_mem -= request.memory
        self.arrive(destination, request.token_task)
        if not source.pending:
            return
        if not source.batch:
            if source.mem + source.pending[0].memory <= source.capacity:
                self.start_iteration(source)
                self.counters["source_wakeups"] += 1
        elif (
            len(source.batch) < self.fleet.max_batch
            and source.batch_tokens < self.fleet.max_batch_tokens
            and self.cut(source)
        ):
            self.counters["source_wakeups"] += 1


def run_plain(fleet: SplitwiseFleet, requests: Requests) -> tuple[Plain, list[Request]]:
    """Run the second implementation on what the kernel is given; requests that fit no machine are left out."""
    machines: list[Machine] = []
    for group in fleet.groups:
        kind = group.machine
        for _ in range(group.count):
            machines.append(
                Machine(
                    number=len(machines),
                    prompt_s=kind.step_times[fleet.model.name].prompt_s,
                    token_s=kind.step_times[fleet.model.name].token_s,
                    capacity=kind.memory_bytes,
                    mem=fleet.model.weights_bytes,
                    home=group.role.value,
                    watts=(
                        kind.gpus * kind.idle_w_per_gpu,
                        kind.gpus * kind.prompt_w_per_gpu,
                        kind.gpus * kind.token_w_per_gpu,
                    ),
                )
            )
    asked = [
        Request(number, *row, fleet.model.kv_bytes_per_token)
        for number, row in enumerate(
            zip(
                requests.arrival_s.tolist(),
                requests.prompt_tokens.tolist(),
                requests.output_tokens.tolist(),
                strict=True,
            )
        )
    ]
    largest = max(machine.capacity for machine in machines) - fleet.model.weights_bytes
    simulation = Plain(machines, fleet)
    simulation.run(
        [request for request in asked if request.kv * (request.prompt + request.output) <= largest]
    )
    return simulation, asked
