"""Schedules: in which order, and in how many steps, a model goes to its new shape. Arithmetic over shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..architectures.binding import Binding
from ..architectures.description import EXPERTS, GROUPS, NEURONS, ROWS
from ..errors import RequestError
from .multiples import multiples_to_try
from .options import ShapeOptions
from .schedule_names import CUT, CUTS, HEADS, RECOVER


@dataclass(frozen=True)
class ScheduledStage:
    """One stage of a schedule.

    Args:
        name: One of `schedule_names.STAGES`.
        shape: The complete shape after it.
    """

    name: str
    shape: Mapping[str, int]

    @property
    def recovers(self) -> bool:
        """Whether it trains, and so leaves the shape as it is."""
        return self.name == RECOVER


def scheduled_stages(
    names: Sequence[str], binding: Binding, shape: Mapping[str, int], options: ShapeOptions
) -> tuple[ScheduledStage, ...]:
    """Return the shape after each stage; after the last it is the new shape.

    A stage that is named several times goes its way in as many equal steps. The vocabulary alone is cut at once: which
    tokens stay is chosen by what texts need, and says nothing about the model.

    Args:
        names: The stages, from `parse_schedule`.
        binding: The model.
        shape: The complete new shape.
        options: The request, for the multiples that MLP widths have.

    Raises:
        RequestError: The new shape does not need a stage, needs one that is not there, or a step is too small.
    """
    before = binding.shape
    changed = [key for key in shape if shape[key] != before[key]]
    named = {key for name in names for key in CUTS.get(name, ())}
    rest = tuple(key for key in changed if key not in named)
    if rest and CUT not in names:
        missing = next(name for name, keys in CUTS.items() if rest[0] in keys)
        raise RequestError(
            f"the schedule reaches {_sizes(before, before, rest)}, and the target is {_sizes(before, shape, rest)}; "
            f"add {missing}, or cut for all that no other stage names"
        )
    keys_of = {**CUTS, CUT: rest}
    for name in dict.fromkeys(names):
        if name != RECOVER and not set(keys_of[name]) & set(changed):
            what = "all that the target changes is cut by others" if name == CUT else f"{keys_of[name][0]} stays"
            raise RequestError(f"the schedule names {name}, which the target does not need: {what}; leave {name} out")
    found: list[ScheduledStage] = []
    current, done = dict(before), dict.fromkeys(names, 0)
    for name in names:
        if name != RECOVER:
            done[name] += 1
            how_far = (done[name], names.count(name))
            step = {**current, **_towards(keys_of[name], binding, shape, options, how_far, current)}
            if step == current:
                raise RequestError(
                    f"the schedule cuts {name} in {names.count(name)} steps, and step {done[name]} of them would "
                    "change nothing; name it fewer times"
                )
            current = step
        found.append(ScheduledStage(name, dict(current)))
    return tuple(found)


def _towards(
    keys: Sequence[str],
    binding: Binding,
    shape: Mapping[str, int],
    options: ShapeOptions,
    how_far: tuple[int, int],
    current: Mapping[str, int],
) -> dict[str, int]:
    """Return the sizes of some dimensions after so many of the steps to the new shape."""
    before, (done, steps) = binding.shape, how_far
    width = before[NEURONS]
    multiples = {
        NEURONS: multiples_to_try(width, options.intermediate_multiple, options.for_runtime)[-1],
        EXPERTS: binding.expert_groups,
    }

    def between(old: int, new: int, multiple: int = 1) -> int:
        if done == steps or old == new:
            return new
        return min(old, max(new, round((old - (old - new) * done / steps) / multiple) * multiple))

    found = {key: between(before[key], shape[key], multiples.get(key, 1)) for key in keys if key in shape}
    if ROWS in found:
        found[ROWS] = shape[ROWS]
    if done < steps and {GROUPS, HEADS} & found.keys():
        # As many query heads in each KV group, and as near to an equal step as the class allows.
        each = between(before[HEADS] // before[GROUPS], shape[HEADS] // shape[GROUPS])
        wanted = found.get(GROUPS, before[GROUPS])
        groups = sorted(range(shape[GROUPS], current[GROUPS] + 1), key=lambda count: (abs(count - wanted), -count))
        pairs = [{GROUPS: count, HEADS: count * each} for count in groups]
        allowed = (pair for pair in pairs if not binding.refusal(pair, allow_class_change=options.allow_class_change))
        found |= next(allowed, {GROUPS: current[GROUPS], HEADS: current[HEADS]})
    return found


def _sizes(before: Mapping[str, int], shape: Mapping[str, int], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={shape.get(key, before[key])}" for key in keys)


def describe_stages(stages: Sequence[ScheduledStage], before: Mapping[str, int]) -> list[str]:
    """Return what each stage does in a few words.

    Args:
        stages: The stages, in order.
        before: The shape that they start from.
    """
    found, current = [], before
    for stage in stages:
        keys = [key for key in stage.shape if stage.shape[key] != current[key]]
        found.append(stage.name + (f" to {_sizes(current, stage.shape, keys)}" if keys else ""))
        current = stage.shape
    return found
