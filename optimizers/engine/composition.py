"""How stages fit together: their order, and the mixes that have no meaning."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from .stage import Place, Stage, has_point


class Partition(Stage):
    """Several directions in one chain, each for the parameter groups whose ``direction`` has its name.

    ``Partition(muon=MuonDirection(), adamw=AdamDirection())``: a group of ``direction="adamw"`` is stepped by the
    second one; where a group does not say, by the first. The hyper-parameters of all stand side by side in every
    group; those of one name have, in each group, the default of its own direction.

    Raises:
        TypeError: one of them is not a direction.
    """

    place = Place.GRADIENT

    def __init__(self, **directions: Stage) -> None:
        self.directions = tuple(map(copy.copy, directions.values()))
        for name, stage in zip(directions, self.directions, strict=True):
            if not isinstance(stage, Stage) or stage.place is not Place.DIRECTION:
                raise TypeError(f"a Partition is made of directions, got {name}={stage!r}")
            stage.route = name
        # (A choice of one is written as two of the same.)
        self.ranges = {"direction": " | ".join([*directions, *directions][: max(2, len(directions))])}
        super().__init__(direction=next(iter(directions)))

    def applies(self, hyper: Mapping[str, Any]) -> bool:
        return False  # its directions do, each in its groups

    @staticmethod
    def defaults(stages: Iterable[Stage], direction: Any) -> dict[str, Any]:
        """The hyper-parameters of the direction that groups of this ``direction`` have."""
        return {s.key(name): v for s in stages if s.route == direction is not None for name, v in s.hyper.items()}


def in_order(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages sorted by place and rank; raises where they do not fit together."""
    stages = list(stages)
    stages += [each for stage in stages if isinstance(stage, Partition) for each in stage.directions]
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(f"a chain is made of stages, such as GradientNoise(), got {stage!r}")
    chain = sorted(stages, key=lambda stage: (stage.place, stage.rank))
    for place, members in groupby(chain, key=lambda stage: stage.place):
        routes = [(type(stage).__name__, stage.route) for stage in members]
        names = [name for name, route in routes if route is None]
        if place is Place.DIRECTION and len(routes) > 1 and names:
            raise ValueError(
                f"a chain has one direction, got {' and '.join(name for name, _ in routes)}: a Partition gives "
                "each its parameter groups"
            )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"a chain has each stage once, got {name} {names.count(name)} times; a named optimizer has "
                    "its own, to be set by its arguments"
                )
    joined = tuple(stage.joined(chain) for stage in chain)
    # (Which of several directions a parameter group has is known at its first step.)
    refuse_neighbours(
        [(stage, stage.hyper) for stage in joined if stage.route is None and stage.applies(stage.hyper)]
    )
    points = [type(stage).__name__ for stage in joined if has_point(stage)]
    if len(points) > 1:
        raise ValueError(f"{' and '.join(points)} each say where to evaluate: a chain has one such stage, use one")
    return joined


def refuse_neighbours(stages: Sequence[tuple[Stage, Mapping[str, Any]]], where: str = "") -> None:
    """Raise ValueError where a stage cannot be beside another at their settings."""
    for pair in stages:
        if reason := pair[0].refuses_beside([other for other in stages if other is not pair]):
            raise ValueError(where + reason)


def refuse_clashes(stages: Iterable[Stage], taken: Iterable[str]) -> None:
    """Raise where two stages have a hyper-parameter or a state tensor of one name."""
    settings: dict[str, Stage | None] = dict.fromkeys(taken)
    memory: dict[str, Stage | None] = {"step": None, "index": None, "train_point": None}
    for stage in stages:
        for names, owners, shared in (
            ([stage.key(name) for name in stage.hyper], settings, stage.shared),
            ([*stage.state, *stage.scalars, *stage.matrices], memory, ()),
        ):
            for name in names:
                owner = owners.setdefault(name, stage)
                routed = owner is not None and owner.route is not None and stage.route is not None
                common = routed or (owner is not None and name in shared and name in owner.shared)
                if owner is not stage and not common:
                    others = f"{type(owner).__name__} and {type(stage).__name__}"
                    raise ValueError(
                        f"{name} belongs to both {others}: use one"
                        if owner
                        else f"{name} belongs to every optimizer: {type(stage).__name__} cannot have it"
                    )
