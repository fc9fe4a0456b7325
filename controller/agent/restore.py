"""Gives the GPUs of this node back what was found on them before the first write, once, from the journal alone.

It exists for the day on which there is no API server, no controller, or no wish to have Ballast. It needs the journal,
the driver and the right to set. A limit that somebody else changed since is left alone, unless all are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.agent.actuator import set_step
from controller.agent.journal import BOOT_ID, Journal, boot_id
from solver.domain.node_power import Failure, Knob, Step
from solver.power.agent_core import Original
from telemetry.sources.nvml.reader import NvmlReader
from telemetry.sources.nvml.sample import GpuSample

TRIES = 3
_NEAR_W = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came of one GPU."""

    uuid: str
    limit_w: float | None
    """As read back; None: not known."""
    original_w: float | None
    outcome: str
    """Restored, AlreadyOriginal, ForeignLimit, GpuLost, NoPermission, Failed, NotInJournal."""
    unlocked: bool

    @property
    def good(self) -> bool:
        """Whether it is as it was, or as somebody else wants it."""
        return self.outcome in {"Restored", "AlreadyOriginal", "ForeignLimit"} and self.unlocked


def restore(
    folder: Path, *, everything: bool = False, dry_run: bool = False, boot_id_file: Path = BOOT_ID
) -> Sequence[Restored]:
    """Restore all GPUs in the journal; those without an entry are told, and with ``everything`` get the default limit.

    Raises
    ------
    InputError
        No driver, or the journal cannot be read.
    """
    reader = NvmlReader()
    try:
        journal = Journal(folder, boot_id(boot_id_file))
        samples = {sample.uuid: sample for sample in reader.sweep(0.0)}
        counters = {uuid: one.counter_j for uuid, one in samples.items() if one.counter_j is not None}
        journal.begin(reader.driver_version, counters)
        originals = journal.originals()
        standing = journal.gpus_standing()
        done = []
        for uuid, sample in samples.items():
            original = originals.get(uuid)
            default_w = reader.identities[uuid].span.default_w
            if original is None and everything and default_w is not None:
                original = Original(limit_w=default_w, assumed=True)
            if original is None:
                done.append(
                    Restored(
                        uuid=uuid,
                        limit_w=sample.limit_w,
                        original_w=None,
                        outcome="NotInJournal",
                        unlocked=True,
                    )
                )
                continue
            ours = standing[uuid].wrote_w if uuid in standing else None
            foreign = _foreign(sample, ours, original.limit_w) and not everything
            done.append(_restored(reader, sample, original.limit_w, foreign=foreign, dry_run=dry_run))
        return tuple(done)
    finally:
        reader.close()


def _foreign(sample: GpuSample, ours: tuple[float, ...] | None, original_w: float | None) -> bool:
    """Whether the limit is neither ours nor the original; where it is not known what we wrote, it is ours."""
    if ours is None or sample.limit_w is None:
        return False
    known = [*ours, *([] if original_w is None else [original_w])]
    return not any(abs(sample.limit_w - one) <= _NEAR_W for one in known)


def _restored(
    reader: NvmlReader, sample: GpuSample, original_w: float | None, *, foreign: bool, dry_run: bool
) -> Restored:
    uuid, outcome = sample.uuid, "Failed"
    if sample.failure is not Failure.NONE:
        return Restored(
            uuid=uuid, limit_w=None, original_w=original_w, outcome=sample.failure.value, unlocked=False
        )
    unlock = Step(uuid=uuid, knob=Knob.CLOCK, value=None, lowers=False)
    answer = Failure.NONE if dry_run else set_step(reader, unlock)
    unlocked = answer in {Failure.NONE, Failure.NOT_SUPPORTED}
    limit_w = sample.limit_w
    if not unlocked:
        outcome = answer.value
    elif foreign:
        outcome = "ForeignLimit"
    elif original_w is None or limit_w is None or abs(limit_w - original_w) <= _NEAR_W:
        outcome = "AlreadyOriginal"
    elif dry_run:
        outcome = "Restored"
    else:
        step = Step(uuid=uuid, knob=Knob.LIMIT, value=original_w, lowers=limit_w > original_w)
        for _ in range(TRIES):
            answer = set_step(reader, step)
            limit_w = reader.look([uuid], 0.0)[0].limit_w
            if limit_w is not None and abs(limit_w - original_w) <= _NEAR_W:
                outcome = "Restored"
                break
            outcome = answer.value if answer is not Failure.NONE else "ActuatorMismatch"
    return Restored(uuid=uuid, limit_w=limit_w, original_w=original_w, outcome=outcome, unlocked=unlocked)
