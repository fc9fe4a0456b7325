"""A second, plain implementation of the general engine's rules, with objects and lists, to test the kernels by.

It exists so that the compiled engine has an opinion to agree with on random fleets. It follows the rules as the
docstrings of `simulator.engine` state them, iteration by iteration: what the kernels keep as running sums (reserved KV,
outstanding tokens, assigned memory) is counted anew from the requests whenever it is asked for. Nothing is optimised.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from simulator.fleet import EventKind, Fleet, InstanceKind, Overlap, QueueOrder, Role, RouterKind
from simulator.record import RejectReason, RequestStatus
from simulator.step_table import PrefillForm, StepTable
from solver.domain.trace import Floats, Ints, Requests


@dataclass(eq=False, kw_only=True)
class Job:
    number: int
    arrival_s: float
    prompt: int
    output: int
    model: int
    level: int
    blocks: list[int]
    state: str = "new"
    """new, waiting, prompt, held, moving, ready, decoding, done, rejected"""
    todo: int = 0
    """Tokens to process before the next one: the prompt, after a loss of KV also what was generated."""
    progress: int = 0
    generated: int = 0
    cached: int = 0
    """KV tokens while decoding."""
    losses: int = 0
    admitted_s: float = 0.0
    moves: int = 0
    prefill_at: "Machine | None" = None
    decode_at: "Machine | None" = None
    energy_j: float = 0.0
    queue_s: float = math.nan
    ttft_s: float = math.nan
    e2e_s: float = math.nan
    reason: RejectReason = RejectReason.NONE

    @property
    def left(self) -> int:
        return self.output - self.generated

    @property
    def in_system(self) -> bool:
        return self.state not in {"new", "done", "rejected"}


@dataclass(eq=False, kw_only=True)
class Iteration:
    start_s: float
    end_s: float
    order: int
    joules: float
    chunks: list[tuple[Job, int]]
    decodes: list[Job]


@dataclass(eq=False, kw_only=True)
class Machine:
    number: int
    kind: InstanceKind
    capacity: int
    role: Role
    model: int
    start_s: float
    drain_s: float
    state: str = "up"
    """up, down, starting, draining"""
    next_kind: InstanceKind | None = None
    waiting: list[Job] = field(default_factory=list)
    under_way: Job | None = None
    decoding: list[Job] = field(default_factory=list)
    ready: list[Job] = field(default_factory=list)
    held: list[Job] = field(default_factory=list)
    """KV that waits here to be moved, or is being moved."""
    wants_room: list[Job] = field(default_factory=list)
    arriving: list[Job] = field(default_factory=list)
    iteration: Iteration | None = None
    egress_s: float = 0.0
    ingress_s: float = 0.0
    timer_s: float = math.inf
    home: str = ""
    list_name: str = ""
    cache: list[int] = field(default_factory=list)
    """Blocks, the next to go first."""
    present_since_s: float = 0.0
    state_since_s: float = 0.0
    busy_s: float = 0.0
    up_s: float = 0.0
    energy_j: float = 0.0
    idle_j: float = 0.0
    occupancy_s: float = 0.0
    prompt_done: float = 0.0
    output_done: float = 0.0

    @property
    def running_prompts(self) -> list[Job]:
        jobs = [job for job, _ in self.iteration.chunks] if self.iteration is not None else []
        return jobs if self.under_way is None or self.under_way in jobs else [*jobs, self.under_way]

    @property
    def kv_used(self) -> int:
        prompts = [*self.running_prompts, *self.held, *self.arriving, *self.ready]
        return sum(job.todo for job in prompts) + sum(job.cached for job in self.decoding)

    @property
    def runs(self) -> bool:
        return self.iteration is not None

    @property
    def present(self) -> int:
        return len([*self.waiting, *self.running_prompts, *self.held, *self.ready, *self.decoding])


@dataclass(frozen=True, kw_only=True)
class PlainRecord:
    jobs: list[Job]
    machines: list[Machine]
    prefill_instance: list[int]
    decode_instance: list[int]
    transfers: int
    transfer_bytes: float
    cached_tokens: int
    iterations: int
    horizon_s: float


# -- step tables ------------------------------------------------------------------------------------------------------


def _at(values: Floats, tokens: float) -> float:
    """Read a row over new tokens: linear in between, the last slope goes on."""
    low = min(math.floor(tokens), len(values) - 2)
    return float(values[low] + (values[low + 1] - values[low]) * (tokens - low))


def _prefill_s(table: StepTable, chunks: list[tuple[int, int, int]]) -> float:
    """Chunks are (cached, new, whole prompt)."""
    total = sum(new for _, new, _ in chunks)
    reads = sum(cached + new for cached, new, _ in chunks)
    pairs = sum(
        new * ((prompt if table.whole_prompt_pairs else cached) + new / 2) for cached, new, prompt in chunks
    )
    alone_s = _at(table.prefill_s, total)
    if table.prefill_form is PrefillForm.ADDITIVE:
        return alone_s + table.prompt_s * len(chunks) + max(table.context_s * reads, table.pair_s * pairs)
    context = max(0.0, pairs / total - total / 2)
    return max(alone_s, _at(table.prefill_s, context + total) - _at(table.prefill_s, context))


def _decode(table: StepTable, values: Floats, slopes: Floats, decodes: int, cached: int) -> float:
    knot = int(np.searchsorted(table.kv_knots_tokens, cached, side="right")) - 1
    return float(values[decodes, knot] + slopes[decodes, knot] * (cached - table.kv_knots_tokens[knot]))


def iteration_cost(
    table: StepTable, chunks: list[tuple[int, int, int]], decodes: int, cached: int
) -> tuple[float, float]:
    """Return the seconds and joules of one iteration."""
    prefill_s = _prefill_s(table, chunks) if chunks else 0.0
    decode_s = (
        max(0.0, _decode(table, table.decode_s, table.decode_slope_s, decodes, cached)) if decodes else 0.0
    )
    took_s = prefill_s + decode_s
    if chunks and decodes:
        took_s = max(prefill_s + decode_s - table.shared_s, prefill_s, decode_s)
    if table.truncated:
        took_s = max(1.0, math.floor(took_s))
    if chunks:
        tokens = min(sum(new for _, new, _ in chunks), len(table.prefill_w) - 1)
        return took_s, took_s * float(table.prefill_w[tokens])
    return took_s, _decode(table, table.decode_j, table.decode_slope_j, decodes, cached)


# -- the cluster ------------------------------------------------------------------------------------------------------


class PlainEngine:
    """One run; `run` may be called once."""

    def __init__(
        self,
        fleet: Fleet,
        requests: Requests,
        *,
        model_of_request: Ints | None = None,
        priority_of_request: Ints | None = None,
        seed: int = 0,
    ) -> None:
        self.fleet = fleet
        self.scheduler = fleet.scheduler
        self.links = fleet.links
        total = len(requests)
        prioritised = fleet.scheduler.order is QueueOrder.PRIORITY and priority_of_request is not None
        self.draws = np.random.default_rng(seed).random((2, total))
        self.jobs = [
            Job(
                number=number,
                arrival_s=float(requests.arrival_s[number]),
                prompt=int(requests.prompt_tokens[number]),
                output=int(requests.output_tokens[number]),
                model=0 if model_of_request is None else int(model_of_request[number]),
                level=int(priority_of_request[number])
                if prioritised and priority_of_request is not None
                else 0,
                blocks=[]
                if requests.blocks is None
                else requests.blocks.ids[
                    requests.blocks.offsets[number] : requests.blocks.offsets[number + 1]
                ].tolist(),
            )
            for number in range(total)
        ]
        homes = {Role.PREFILL: "prompt", Role.BOTH: "mixed", Role.DECODE: "token"}
        self.machines: list[Machine] = []
        self.of_pool: list[list[Machine]] = []
        for pool in fleet.pools:
            self.of_pool.append([])
            for _ in range(pool.count):
                kind = fleet.kinds[pool.kind]
                machine = Machine(
                    number=len(self.machines),
                    kind=kind,
                    capacity=kind.kv_capacity_tokens,
                    role=pool.role,
                    model=pool.model,
                    start_s=pool.start_s,
                    drain_s=pool.drain_s,
                    home=homes[pool.role],
                    list_name=homes[pool.role],
                )
                self.machines.append(machine)
                self.of_pool[-1].append(machine)
        self.lists: dict[str, list[Machine]] = {
            name: [machine for machine in self.machines if machine.home == name] for name in homes.values()
        }
        self.turns: dict[tuple[int, int], int] = {}
        self.moves: list[tuple[float, int, Job, int]] = []
        self.order = 0
        self.now_s = 0.0
        self.transfers = 0
        self.transfer_bytes = 0.0
        self.cached_tokens = 0
        self.iterations = 0
        self.prefill_instance = [-1] * total
        self.decode_instance = [-1] * total

    # -- the accounts -------------------------------------------------------------------------------------------------

    def pass_time(self, to_s: float) -> None:
        """Book idle energy and presence of all machines from now on to a time."""
        for machine in self.machines:
            span_s = to_s - self.now_s
            machine.occupancy_s += machine.present * span_s
            if machine.state != "down":
                machine.up_s += span_s
                if machine.iteration is None:
                    machine.idle_j += machine.kind.table.idle_w * span_s
                    machine.energy_j += machine.kind.table.idle_w * span_s
        self.now_s = to_s

    # -- the routers --------------------------------------------------------------------------------------------------

    def outstanding(self, machine: Machine) -> int:
        """Prompt tokens not yet processed plus one per unfinished decode."""
        tokens = sum(job.todo for job in machine.waiting)
        tokens += sum(job.todo - job.progress for job in machine.running_prompts)
        return tokens + sum(job.in_system and job.decode_at is machine for job in self.jobs)

    def assigned(self, machine: Machine) -> int:
        """Tokens that the requests sent to a machine will hold at their end there."""
        tokens = 0
        for job in self.jobs:
            if job.in_system:
                if job.decode_at is machine:
                    tokens += job.prompt + job.output
                elif job.prefill_at is machine and job.state in {"waiting", "prompt", "held", "moving"}:
                    tokens += job.todo
        return tokens

    def hits(self, machine: Machine, job: Job) -> int:
        """Prompt tokens of a job that a machine has cached."""
        leading = 0
        while leading < len(job.blocks) and job.blocks[leading] in machine.cache:
            leading += 1
        return min(leading * self.links.block_tokens, job.prompt, job.todo - 1)

    def largest_kv(self, job: Job) -> int:
        """KV tokens of a job just before its last token: the last one is never cached."""
        return job.prompt + job.output - 1

    def fits(self, job: Job, machine: Machine) -> bool:
        if machine.role is not Role.PREFILL:
            return self.largest_kv(job) <= machine.capacity
        decoders = [m for m in self.machines if m.model == job.model and m.role is Role.DECODE]
        can_leave = job.left <= 1 or any(self.largest_kv(job) <= decoder.capacity for decoder in decoders)
        return can_leave and job.todo <= machine.capacity

    def pick(self, job: Job, candidates: list[Machine], phase: int) -> Machine | None:
        """Choose among those that are up, else among those that start."""
        for state in ("up", "starting"):
            usable = [machine for machine in candidates if machine.state == state and self.fits(job, machine)]
            if not usable:
                continue
            kind = self.fleet.router.kind
            if kind is RouterKind.ROUND_ROBIN:
                turn = self.turns.get((phase, job.model), 0)
                self.turns[phase, job.model] = turn + 1
                return usable[turn % len(usable)]
            if kind is RouterKind.RANDOM:
                return usable[int(self.draws[phase, job.number] * len(usable))]
            if kind is RouterKind.LEAST_KV:
                return min(usable, key=lambda m: (m.kv_used + self.outstanding(m)) / m.capacity)
            if kind is RouterKind.PREFIX_AWARE:
                return min(
                    usable,
                    key=lambda m: self.outstanding(m) - (0 if m.role is Role.DECODE else self.hits(m, job)),
                )
            return min(usable, key=self.outstanding)
        return None

    def place(self, job: Job) -> bool:
        """Choose where the prompt goes, and the decode if that is known; False if nothing can take it."""
        mine = [machine for machine in self.machines if machine.model == job.model]
        decoders = [machine for machine in mine if machine.role is Role.DECODE]
        if self.fleet.router.kind is RouterKind.MIXED_POOL and decoders:
            return self.place_mixed(job)
        if self.fleet.router.kind is RouterKind.MIXED_POOL:
            prefillers = mine
        else:
            prefillers = [machine for machine in mine if machine.role is not Role.DECODE]
        machine = self.pick(job, prefillers, 0)
        if machine is None:
            return False
        job.prefill_at = machine
        job.decode_at = machine if machine.role is Role.BOTH else None
        return True

    def place_mixed(self, job: Job) -> bool:
        def listed(name: str) -> list[Machine]:
            return [m for m in self.lists[name] if m.state == "up" and m.model == job.model]

        whole = job.prompt + job.output
        limit = self.fleet.router.prompt_limit_tokens
        prefill: Machine | None = None
        for name in ("prompt", "mixed"):
            if listed(name) and prefill is None:
                best = min(listed(name), key=self.outstanding)
                pending = self.outstanding(best)
                if job.todo <= best.capacity and (pending == 0 or pending + job.todo <= limit):
                    prefill = best
        decode: Machine | None = None
        for name in ("token", "mixed"):
            if listed(name) and decode is None:
                best = min(listed(name), key=self.assigned)
                if self.assigned(best) + whole < best.capacity:
                    decode = best
        if prefill is None and listed("token"):
            best = min(listed("token"), key=self.outstanding)
            if job.todo <= best.capacity:
                self.to_list(best, "mixed")
                prefill = best
        if decode is None and listed("prompt"):
            best = min(listed("prompt"), key=self.assigned)
            if whole <= best.capacity:
                self.to_list(best, "mixed")
                decode = best
        if prefill is None or decode is None:
            prefill = None
            for state in ("up", "starting"):
                fitting = [
                    m
                    for m in self.machines
                    if m.model == job.model and m.state == state and whole <= m.capacity
                ]
                if prefill is None and fitting:
                    prefill = min(fitting, key=self.outstanding)
            decode = prefill
        job.prefill_at, job.decode_at = prefill, decode
        return prefill is not None

    def to_list(self, machine: Machine, name: str) -> None:
        self.lists[machine.list_name].remove(machine)
        self.lists[name].append(machine)
        machine.list_name = name

    # -- requests come and go -----------------------------------------------------------------------------------------

    def arrive(self, job: Job) -> None:
        job.todo = job.prompt
        if self.place(job):
            self.enqueue(job)
            return
        mine = [machine for machine in self.machines if machine.model == job.model]
        serving = [
            m for m in mine if m.role is not Role.DECODE or self.fleet.router.kind is RouterKind.MIXED_POOL
        ]
        somebody = any(machine.state in {"up", "starting"} for machine in serving)
        self.reject(job, RejectReason.TOO_LONG if somebody else RejectReason.NO_INSTANCE)

    def enqueue(self, job: Job) -> None:
        machine = job.prefill_at
        assert machine is not None
        job.state = "waiting"
        job.progress = 0
        self.prefill_instance[job.number] = machine.number
        machine.waiting.append(job)
        self.wake(machine)

    def reject(self, job: Job, reason: RejectReason) -> None:
        job.state = "rejected"
        job.reason = reason

    def complete(self, job: Job) -> None:
        job.state = "done"
        job.e2e_s = self.now_s - job.arrival_s

    def lose_kv(self, machine: Machine) -> None:
        """Preempt: the prompt under way, else the decode admitted last at the lowest priority."""
        job = machine.under_way
        if job is not None:
            machine.under_way = None
        else:
            often = self.scheduler.max_preemptions
            job = max(machine.decoding, key=lambda j: (j.losses < often, j.level, j.admitted_s, j.number))
            machine.decoding.remove(job)
            job.prefill_at = machine
            job.todo = job.prompt + job.generated
        job.losses += 1
        job.progress = 0
        job.state = "waiting"
        machine.waiting.insert(0, job)

    # -- iterations ---------------------------------------------------------------------------------------------------

    def wake(self, machine: Machine) -> None:
        """Something arrived or memory became free: an idle machine looks at once, a busy one after its iteration."""
        if machine.state in {"up", "draining"} and not machine.runs:
            self.start(machine)

    def first_waiting(self, machine: Machine) -> Job | None:
        return min(machine.waiting, key=lambda job: job.level, default=None)

    def start(self, machine: Machine) -> None:
        if machine.next_kind is not None:
            machine.kind, machine.next_kind = machine.next_kind, None
        table = machine.kind.table
        scheduler = self.scheduler
        self.join_ready(machine)
        preempted = False
        while machine.decoding and machine.capacity - machine.kv_used < len(machine.decoding):
            self.lose_kv(machine)
            preempted = True
            if not machine.decoding:
                self.join_ready(machine)
        self.admit_transfers(machine)
        decodes = len(machine.decoding)
        budget = scheduler.max_batch_tokens - (decodes if scheduler.chunked_prefill else 0)
        chunks: list[tuple[Job, int]] = []
        if machine.under_way is not None:
            job = machine.under_way
            take = min(job.todo - job.progress, budget)
            chunks.append((job, take))
            budget -= take
        reserved = machine.kv_used
        while not preempted and budget > 0 and decodes + len(chunks) < scheduler.max_batch:
            first = self.first_waiting(machine)
            if first is None:
                break
            room = float(machine.capacity)
            if decodes + len(chunks) > 0:
                room *= 1.0 - scheduler.watermark_ratio
            if reserved + first.todo + decodes > room:
                break
            if not scheduler.chunked_prefill and chunks and first.todo > budget:
                break
            machine.waiting.remove(first)
            reserved += first.todo
            first.state = "prompt"
            first.admitted_s = self.now_s
            if math.isnan(first.queue_s):
                first.queue_s = self.now_s - first.arrival_s
            if self.links.prefix_cache_blocks:
                first.progress = self.hits(machine, first)
                self.cached_tokens += first.progress
            take = first.todo - first.progress
            if scheduler.chunked_prefill:
                take = min(take, budget)
            chunks.append((first, take))
            budget -= take
        machine.under_way = None
        if not chunks and not decodes:
            return
        running = [] if chunks and not scheduler.chunked_prefill else list(machine.decoding)
        took_s, joules = iteration_cost(
            table,
            [(job.progress, take, job.todo) for job, take in chunks],
            len(running),
            sum(job.cached for job in running),
        )
        self.order += 1
        machine.iteration = Iteration(
            start_s=self.now_s,
            end_s=self.now_s + took_s,
            order=self.order,
            joules=joules,
            chunks=chunks,
            decodes=running,
        )

    def join_ready(self, machine: Machine) -> None:
        under_way = machine.under_way is not None
        while machine.ready and len(machine.decoding) + under_way < self.scheduler.max_batch:
            self.join(machine, machine.ready.pop(0))

    def join(self, machine: Machine, job: Job) -> None:
        job.state = "decoding"
        job.cached = job.todo
        machine.decoding.append(job)
        self.decode_instance[job.number] = machine.number

    def end_iteration(self, machine: Machine) -> None:
        iteration = machine.iteration
        assert iteration is not None
        machine.iteration = None
        self.iterations += 1
        machine.busy_s += self.now_s - iteration.start_s
        machine.energy_j += iteration.joules
        tokens = sum(take for _, take in iteration.chunks)
        per_token_j = iteration.joules / (tokens + len(iteration.decodes))
        machine.prompt_done += tokens
        machine.output_done += len(iteration.decodes)
        for job in iteration.decodes:
            job.energy_j += per_token_j
            job.generated += 1
            job.cached += 1
            if job.left == 0:
                machine.decoding.remove(job)
                self.complete(job)
        finished = []
        for job, take in iteration.chunks:
            job.energy_j += per_token_j * take
            job.progress += take
            if job.progress < job.todo:
                machine.under_way = job
            else:
                finished.append(job)
        # all prompts leave the batch together, so that what each frees is seen by those it wakes
        for job in finished:
            self.end_prompt(machine, job)
        self.start(machine)
        busy = machine.runs or machine.held or machine.waiting
        if not busy and machine.list_name != machine.home:
            self.to_list(machine, machine.home)
        self.end_drains()

    def end_prompt(self, machine: Machine, job: Job) -> None:
        if math.isnan(job.ttft_s):
            job.ttft_s = self.now_s - job.arrival_s
        job.generated += 1
        machine.output_done += 1
        self.keep(machine, job)
        if job.left == 0:
            self.complete(job)
        elif job.decode_at is machine:
            self.join(machine, job)
        else:
            job.state = "held"
            machine.held.append(job)
            self.hand_over(job, machine)

    def keep(self, machine: Machine, job: Job) -> None:
        """Keep the blocks of a prompt; the first block of a prompt is the last to go."""
        for block in reversed(job.blocks):
            if block in machine.cache:
                machine.cache.remove(block)
            elif len(machine.cache) >= self.links.prefix_cache_blocks:
                if not machine.cache:
                    return
                machine.cache.pop(0)
            machine.cache.append(block)

    # -- transfers ----------------------------------------------------------------------------------------------------

    def hand_over(self, job: Job, busy: Machine | None = None) -> None:
        """Choose a destination if there is none; ask it for room. ``busy`` is about to start an iteration itself."""
        source = job.prefill_at
        assert source is not None
        if job.decode_at is None:
            decoders = [m for m in self.machines if m.model == job.model and m.role is Role.DECODE]
            job.decode_at = self.pick(job, decoders, 1)
        target = job.decode_at
        if target is None:
            source.held.remove(job)
            self.reject(job, RejectReason.NO_INSTANCE)
            if source is not busy:
                self.wake(source)
        elif target is source:
            source.held.remove(job)
            source.ready.append(job)
            job.state = "ready"
            self.decode_instance[job.number] = source.number
            if source is not busy:
                self.wake(source)
        else:
            target.wants_room.append(job)
            self.wake(target)

    def admit_transfers(self, machine: Machine) -> None:
        while machine.wants_room:
            job = machine.wants_room[0]
            if machine.kv_used + job.todo + max(1, len(machine.decoding)) > machine.capacity:
                break
            machine.wants_room.pop(0)
            self.move(job, machine)

    def move(self, job: Job, target: Machine) -> None:
        source = job.prefill_at
        assert source is not None
        size = job.todo * source.kind.kv_bytes_per_token
        takes_s = size / self.links.bytes_per_s
        layers = max(1, source.kind.layers)
        may_leave_s, last_s = self.now_s, takes_s
        if self.links.overlap is Overlap.LAYERWISE:
            may_leave_s = job.admitted_s + (self.now_s - job.admitted_s) / layers
            last_s = takes_s / layers
        if self.links.contention:
            may_leave_s = max(may_leave_s, source.egress_s, target.ingress_s)
        end_s = max(may_leave_s + takes_s, self.now_s + last_s)
        if self.links.contention:
            source.egress_s = target.ingress_s = end_s
        job.state = "moving"
        job.moves += 1
        target.arriving.append(job)
        self.transfers += 1
        self.transfer_bytes += size
        self.order += 1
        self.moves.append((end_s, self.order, job, job.moves))

    def end_move(self, job: Job) -> None:
        source, target = job.prefill_at, job.decode_at
        assert source is not None
        assert target is not None
        source.held.remove(job)
        target.arriving.remove(job)
        target.ready.append(job)
        job.state = "ready"
        self.decode_instance[job.number] = target.number
        self.wake(target)
        self.wake(source)
        self.end_drains()

    # -- events from outside ------------------------------------------------------------------------------------------

    def switch_off(self, machine: Machine) -> None:
        machine.state = "down"
        machine.timer_s = math.inf
        machine.cache.clear()
        if machine.next_kind is not None:
            machine.kind, machine.next_kind = machine.next_kind, None

    def end_drains(self) -> None:
        for machine in self.machines:
            if machine.state == "draining" and not machine.held and self.outstanding(machine) == 0:
                self.switch_off(machine)

    def fail(self, machine: Machine) -> None:
        if machine.state == "down":
            return
        iteration = machine.iteration
        if iteration is not None and iteration.end_s > iteration.start_s:
            share = (self.now_s - iteration.start_s) / (iteration.end_s - iteration.start_s)
            machine.energy_j += iteration.joules * share
            machine.idle_j += iteration.joules * share
        lost: list[Job] = []
        again: list[Job] = []
        for job in self.jobs:
            source, target = job.prefill_at, job.decode_at
            if job.state in {"waiting", "prompt"}:
                if source is machine:
                    lost.append(job)
                elif target is machine:
                    job.decode_at = None
            elif job.state in {"ready", "decoding"} and target is machine:
                lost.append(job)
            elif job.state in {"held", "moving"} and source is machine:
                assert target is not None
                (target.wants_room if job.state == "held" else target.arriving).remove(job)
                job.moves += 1
                lost.append(job)
            elif job.state in {"held", "moving"} and target is machine:
                job.state = "held"
                job.moves += 1
                job.decode_at = None
                job.admitted_s = self.now_s  # nothing of a second copy overlaps with the prompt
                again.append(job)
        for jobs in (machine.waiting, machine.decoding, machine.ready, machine.held):
            jobs.clear()
        machine.wants_room.clear()
        machine.arriving.clear()
        machine.under_way = machine.iteration = None
        machine.egress_s = machine.ingress_s = self.now_s
        self.switch_off(machine)
        for job in lost:
            job.state = "lost"
            job.prefill_at = job.decode_at = None
        for job in sorted(lost + again, key=lambda job: job.number):
            if job in again:
                self.hand_over(job)
            else:
                job.todo = job.prompt + job.generated
                job.progress = 0
                if self.place(job):
                    self.enqueue(job)
                else:
                    self.reject(job, RejectReason.NO_INSTANCE)
        for other in self.machines:
            self.wake(other)
        self.end_drains()

    def serve(self, machine: Machine) -> None:
        machine.state = "up"
        machine.timer_s = math.inf
        self.to_list(machine, machine.home)
        self.wake(machine)

    def outside(self, kind: EventKind, machine: Machine, instance_kind: int) -> None:
        if kind is EventKind.DOWN:
            self.fail(machine)
        elif kind is EventKind.DRAIN:
            if machine.state == "starting":
                self.fail(machine)
            elif machine.state == "up":
                machine.state = "draining"
                if machine.drain_s > 0:
                    machine.timer_s = self.now_s + machine.drain_s
                self.end_drains()
        elif kind is EventKind.UP:
            if machine.state == "draining":
                machine.state = "up"
                machine.timer_s = math.inf
            elif machine.state == "down":
                machine.state = "starting"
                machine.timer_s = self.now_s + machine.start_s
                if machine.start_s == 0:
                    self.serve(machine)
        elif machine.iteration is None:
            machine.kind = self.fleet.kinds[instance_kind]
        else:
            machine.next_kind = self.fleet.kinds[instance_kind]

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> PlainRecord:
        events = sorted(self.fleet.events, key=lambda event: event.time_s)
        arrivals = list(self.jobs)
        while arrivals or any(job.in_system for job in self.jobs):
            timed = min(self.machines, key=lambda machine: machine.timer_s)
            running = [machine for machine in self.machines if machine.iteration is not None]
            ending = min(running, key=lambda m: (m.iteration.end_s, m.iteration.order), default=None)  # type: ignore[union-attr]
            move = min(self.moves, key=lambda entry: entry[:2], default=None)
            times = (
                events[0].time_s if events else math.inf,
                timed.timer_s,
                arrivals[0].arrival_s if arrivals else math.inf,
                move[0] if move is not None else math.inf,
                ending.iteration.end_s if ending is not None and ending.iteration is not None else math.inf,
            )
            next_s = min(times)
            if next_s == math.inf:
                break
            self.pass_time(next_s)
            which = times.index(next_s)
            if which == 0:
                event = events.pop(0)
                self.outside(event.kind, self.of_pool[event.pool][event.index], event.instance_kind)
            elif which == 1:
                if timed.state == "starting":
                    self.serve(timed)
                else:
                    self.fail(timed)
            elif which == 2:
                self.arrive(arrivals.pop(0))
            elif which == 3 and move is not None:
                self.moves.remove(move)
                if move[2].state == "moving" and move[2].moves == move[3]:
                    self.end_move(move[2])
            elif ending is not None:
                self.end_iteration(ending)
        return PlainRecord(
            jobs=self.jobs,
            machines=self.machines,
            prefill_instance=self.prefill_instance,
            decode_instance=self.decode_instance,
            transfers=self.transfers,
            transfer_bytes=self.transfer_bytes,
            cached_tokens=self.cached_tokens,
            iterations=self.iterations,
            horizon_s=self.now_s,
        )


def status_of(job: Job) -> RequestStatus:
    """Return how a job ended."""
    if job.state == "done":
        return RequestStatus.COMPLETED
    return RequestStatus.REJECTED if job.state == "rejected" else RequestStatus.INCOMPLETE
