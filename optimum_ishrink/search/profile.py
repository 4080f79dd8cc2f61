"""The cost profile of a device for one model: measured with probe files, saved, and used on another machine."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..architectures.binding import Binding
from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..core.json_codec import from_plain, to_plain
from ..core.json_files import write_json
from ..core.progress import progress_bar
from ..edge.gguf_quantizations import bits
from ..errors import RequestError, SourceError
from ..planning.device_times import check_profiled, read_profile
from ..planning.prices import CostModel, Probe, fit
from ..planning.profile_schema import PROFILE_SCHEMA
from .cost_model import features
from .layout import Layout
from .making import Maker
from .probe_weights import check_room
from .recipe import QUERY_HEADS, priced_types, uniform_types
from .runtime import Runtime
from .shapes import dimension_sizes
from .turns import Workload

_HELD_OUT = 3
"""Probes that the prices are not fitted to."""


@dataclass(frozen=True)
class Profile:
    """What probes of one model took on one device, and the prices that follow.

    Args:
        model: The model's name.
        model_type: Its architecture.
        shape: Its sizes by config key.
        runtime: Name of the runtime.
        build: Its version, and the processor instructions that it used.
        threads: Threads that it used.
        workload: What was timed.
        probes: What was measured.
    """

    model: str
    model_type: str
    shape: Mapping[str, int]
    runtime: str
    build: str
    threads: int
    workload: Workload
    probes: tuple[Probe, ...]

    @cached_property
    def costs(self) -> CostModel:
        """The prices."""
        return fit(self.probes)

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object."""
        return {"schema": PROFILE_SCHEMA, **to_plain(self)}

    def write(self, path: Path) -> None:
        """Write the profile as JSON.

        Args:
            path: The file.
        """
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a profile.

        Args:
            path: The file.

        Raises:
            SourceError: It is missing, damaged, or no profile.
        """
        data = read_profile(path)
        try:
            return from_plain(cls, data, kind="profile")
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from None

    def check(self, binding: Binding, runtime: Runtime, *, threads: int | None, workload: Workload) -> None:
        """Check that a profile is of the model and of what is asked.

        Args:
            binding: The model.
            runtime: The runtime that is asked for.
            threads: The requested threads; None for the profile's.
            workload: What is asked.

        Raises:
            RequestError: It is not; the message says what differs.
        """
        if self.runtime != runtime.name:
            raise RequestError(
                f"the profile is of {self.runtime}, and the search is for {runtime.name}; pass --runtime "
                f"{self.runtime}, or make a profile with `ishrink profile --runtime {runtime.name}` on the device"
            )
        check_profiled(self.model, self.model_type, self.shape, binding)
        missing = [name for name in priced_types(runtime.types) if name not in self.costs.prices.get("decode", {})]
        if missing:
            raise RequestError(f"the profile has no costs of {', '.join(missing)}; profile the device with it")
        if threads is not None and threads != self.threads:
            raise RequestError(
                f"the profile was measured with {self.threads} threads, not {threads}; leave out --threads, or "
                "profile the device again"
            )
        if workload != self.workload:
            raise RequestError(
                f"the profile timed prompts of {self.workload.prompt} tokens in a context of {self.workload.context}; "
                f"pass --prompt-length {self.workload.prompt} --context {self.workload.context}, or profile the "
                "device again"
            )


@dataclass(frozen=True)
class ProbeRecipe:
    """What a probe is.

    Args:
        name: Its name.
        shape: Its sizes by config key.
        types: Name of the type of each matrix, by its name in the file.
        fitted: Whether the prices are fitted to it.
    """

    name: str
    shape: Mapping[str, int]
    types: Mapping[str, str]
    fitted: bool = True


def probe_recipes(layout: Layout, types: Sequence[str], maker: Maker) -> list[ProbeRecipe]:
    """Return the probes of a model, the unpruned model in the first type first.

    Each type has the whole model and a smaller one, so that its price and what every layer costs can be told apart;
    three further ones have types and sizes mixed, and say how far the prices are off.

    Args:
        layout: The base's file.
        types: Names of the types to choose from.
        maker: Says which sizes the vocabulary can have.
    """
    binding = layout.binding
    types = priced_types(types)
    sizes = {key: dimension_sizes(binding, key, rows=maker.rows, protected=1, types=types) for key in binding.shape}
    base = dict(binding.shape)
    group = base[QUERY_HEADS] // base[GROUPS]

    def near(key: str, share: float) -> int:
        return min(sizes[key], key=lambda size: abs(size / base[key] - share))

    def shape(**changes: int) -> dict[str, int]:
        found = {**base, **changes}
        found[QUERY_HEADS] = found[GROUPS] * group
        return found

    found = []
    fewest = min(sizes[GROUPS])
    for number, name in enumerate(types):
        smaller = {LAYERS: near(LAYERS, 0.75), NEURONS: near(NEURONS, 0.6 + 0.1 * (number % 3))}
        smaller[GROUPS] = (base[GROUPS], fewest, near(GROUPS, 0.6))[number % 3]
        for words, changed in (("", shape()), (", smaller", shape(**smaller))):
            found.append(ProbeRecipe(f"{name}{words}", changed, uniform_types(layout, name, types, changed)))
    # Of the smallest files, in which what does not depend on the type costs the largest share.
    coarsest = min(types, key=bits)
    others = [("shallower", shape(**{LAYERS: near(LAYERS, 0.65)}))]
    if len(sizes[GROUPS]) > 1:
        others.append(("fewest groups", shape(**{GROUPS: fewest})))
    if len(sizes[ROWS]) > 1:
        others.append(("fewer rows", shape(**{ROWS: near(ROWS, 0.5)})))
    for words, changed in others:
        of = uniform_types(layout, coarsest, types, changed)
        found.append(ProbeRecipe(f"{coarsest}, {words}", changed, of))
    draw = random.Random(0)
    for number in range(_HELD_OUT):
        changed = shape(
            **{
                LAYERS: near(LAYERS, 0.95 - 0.1 * number),
                NEURONS: near(NEURONS, 0.7 + 0.1 * number),
                ROWS: near(ROWS, (0.8, 1.0, 0.6)[number % 3]),
                GROUPS: near(GROUPS, 1.0 - 0.33 * number),
            }
        )
        each = {name: uniform_types(layout, name, types, changed) for name in types}
        mixed = {name: each[draw.choice(list(types))][name] for name in each[types[0]]}
        found.append(ProbeRecipe(f"held out {number + 1}", changed, mixed, fitted=False))
    return found


def measure_profile(
    runtime: Runtime,
    maker: Maker,
    *,
    model: str,
    workload: Workload,
    held_out: Sequence[ProbeRecipe] = (),
) -> Profile:
    """Measure the costs of a model's parts on this machine.

    Args:
        runtime: The model on the runtime.
        maker: Says which rows stay in smaller vocabularies.
        model: The model's name.
        workload: What is timed.
        held_out: Further files that are timed and not fitted.

    Raises:
        OutputError: The temporary folder has too little room for the probes.
        SourceError: The runtime cannot run a probe.
    """
    layout = runtime.layout
    recipes = [*probe_recipes(layout, runtime.types, maker), *held_out]
    with tempfile.TemporaryDirectory(prefix="ishrink-probes-") as folder:
        files: dict[str, Path] = {}
        check_room(Path(folder), sum(layout.nbytes(each.shape, each.types) for each in recipes), "TMPDIR")
        with progress_bar("writing probes of random weights", len(recipes)) as advance:
            for number, each in enumerate(recipes):
                files[each.name] = Path(folder) / f"probe-{number}"
                tokens = maker.kept_tokens(each.shape[ROWS]) if layout.holds_vocabulary else None
                runtime.write_probe(each.shape, each.types, files[each.name], tokens)
                advance(1)
        vocabulary = min(each.shape[ROWS] for each in recipes)
        figures, build = runtime.time(files, vocabulary=vocabulary)
    return Profile(
        model=model,
        model_type=layout.binding.description.model_type,
        shape=dict(layout.binding.shape),
        runtime=runtime.name,
        build=build,
        threads=runtime.threads,
        workload=workload,
        probes=tuple(
            Probe(each.name, probe_features(layout, each, workload), figures[each.name], each.fitted)
            for each in recipes
        ),
    )


def probe_features(layout: Layout, recipe: ProbeRecipe, workload: Workload) -> dict[str, dict[str, float]]:
    """Return what a probe's figures are linear functions of (see `features`).

    Args:
        layout: The base's file.
        recipe: The probe.
        workload: What is timed.
    """
    return features(layout, recipe.shape, recipe.types, workload, layout.in_shape(recipe.shape))
