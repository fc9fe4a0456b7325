"""What a method of a paper answers: a map, and how well it solved the paper's own program.

It exists because the papers minimise other things than J: their objectives, bounds and gaps are stated in their own
units beside the map, which is then scored like any other. It holds no method.
"""

from dataclasses import dataclass

from solver.domain.moe import ProgramAnswer, Slots


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MethodAnswer:
    """A map [L, S] and the programs that led to it, in their order."""

    physical_to_logical: Slots
    programs: tuple[ProgramAnswer, ...]
