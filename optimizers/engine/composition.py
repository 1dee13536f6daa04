"""How stages fit together: their order, and the mixes that have no meaning."""

from collections.abc import Iterable
from itertools import groupby

from .stage import Place, Stage, has_point


def in_order(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages sorted by place and rank; raises where they do not fit together."""
    stages = list(stages)
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(f"a chain is made of stages, such as GradientNoise(), got {stage!r}")
    chain = sorted(stages, key=lambda stage: (stage.place, stage.rank))
    for place, members in groupby(chain, key=lambda stage: stage.place):
        names = [type(stage).__name__ for stage in members]
        if place is Place.DIRECTION and len(names) > 1:
            raise ValueError(f"a chain has one direction, got {' and '.join(names)}")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"a chain has each stage once, got {name} {names.count(name)} times; a named optimizer has "
                    "its own, to be set by its arguments"
                )
    joined = tuple(stage.joined(chain) for stage in chain)
    points = [type(stage).__name__ for stage in joined if has_point(stage)]
    if len(points) > 1:
        raise ValueError(f"{' and '.join(points)} each say where to evaluate: a chain has one such stage, use one")
    return joined


def refuse_clashes(stages: Iterable[Stage], taken: Iterable[str]) -> None:
    """Raise where two stages have a hyper-parameter or a state tensor of one name."""
    settings: dict[str, Stage | None] = dict.fromkeys(taken)
    memory: dict[str, Stage | None] = {"step": None, "index": None, "train_point": None}
    for stage in stages:
        for names, owners, shared in (
            ([stage.key(name) for name in stage.hyper], settings, stage.shared),
            ([*stage.state, *stage.scalars], memory, ()),
        ):
            for name in names:
                owner = owners.setdefault(name, stage)
                if owner is not stage and not (owner and name in shared and name in owner.shared):
                    others = f"{type(owner).__name__} and {type(stage).__name__}"
                    raise ValueError(
                        f"{name} belongs to both {others}: use one"
                        if owner
                        else f"{name} belongs to every optimizer: {type(stage).__name__} cannot have it"
                    )
