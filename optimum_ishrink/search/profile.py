"""The cost profile of a device for one model: measured with probe files, saved, and used on another machine."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..architectures.description import GROUPS, LAYERS, NEURONS, ROWS
from ..core.json_codec import from_plain, to_plain
from ..core.json_files import read_json, write_json
from ..core.progress import progress_bar
from ..errors import RequestError, SourceError
from .cost_model import CostModel, Probe, Workload, features, fit
from .making import Maker
from .probe_files import write_probe
from .recipe import QUERY_HEADS, priced_types, uniform_types
from .shapes import dimension_sizes
from .template import Template
from .timing import time_files

SCHEMA = 1
_HELD_OUT = 3
"""Probes that the prices are not fitted to."""


@dataclass(frozen=True)
class Profile:
    """Prices of one model's parts on one device.

    Args:
        model: The model's name.
        model_type: Its architecture.
        shape: Its sizes by config key.
        runtime: Name of the runtime.
        build: Its version, and the processor instructions that it used.
        threads: Threads that it used.
        workload: What was timed.
        costs: The prices.
        probes: What was measured.
        base: The figures of the unpruned model in the first type.
    """

    model: str
    model_type: str
    shape: Mapping[str, int]
    runtime: str
    build: str
    threads: int
    workload: Workload
    costs: CostModel
    probes: tuple[Probe, ...]
    base: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object."""
        return {"schema": SCHEMA, **to_plain(self)}

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
        data = read_json(path)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise SourceError(f"{path} is not a profile that this version wrote; make it with `ishrink profile`")
        return from_plain(cls, {key: value for key, value in data.items() if key != "schema"}, kind=str(path))

    def check(self, template: Template, types: Sequence[str], *, threads: int | None, workload: Workload) -> None:
        """Check that a profile is of the model and of what is asked.

        Args:
            template: The base's file.
            types: Names of the types to choose from.
            threads: The requested threads; None for the profile's.
            workload: What is asked.

        Raises:
            RequestError: It is not; the message says what differs.
        """
        binding = template.binding
        if self.model_type != binding.description.model_type or dict(self.shape) != dict(binding.shape):
            raise RequestError(
                f"the profile is of {self.model} ({self.model_type}), another model; make one of this model with "
                "`ishrink profile` on the device"
            )
        missing = [name for name in priced_types(types) if name not in self.costs.prices["decode"]]
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


def probe_recipes(
    template: Template, types: Sequence[str], sizes: Mapping[str, Sequence[int]]
) -> list[tuple[str, dict[str, int], dict[str, str], bool]]:
    """Return the probes of a model: name, shape, types, and whether the prices are fitted to it.

    Each type has the whole model and a smaller one, so that its price and what every layer costs can be told apart;
    three further ones have types and sizes mixed, and say how far the prices are off.

    Args:
        template: The base's file.
        types: Names of the types to choose from.
        sizes: The sizes that each dimension can have.
    """
    base = dict(template.binding.shape)
    group = base[QUERY_HEADS] // base[GROUPS]

    def near(key: str, share: float) -> int:
        return min(sizes[key], key=lambda size: abs(size / base[key] - share))

    def shape(**changes: int) -> dict[str, int]:
        found = {**base, **changes}
        found[QUERY_HEADS] = found[GROUPS] * group
        return found

    found = []
    for number, name in enumerate(types):
        smaller = {LAYERS: near(LAYERS, 0.75), NEURONS: near(NEURONS, 0.6 + 0.1 * (number % 3))}
        for words, changed in (("", shape()), (", narrower and shallower", shape(**smaller))):
            found.append((f"{name}{words}", changed, uniform_types(template, name, types, changed), True))
    first, others = types[0], [("shallower", shape(**{LAYERS: near(LAYERS, 0.65)}))]
    if len(sizes[GROUPS]) > 1:
        others.append(("fewer groups", shape(**{GROUPS: near(GROUPS, 0.6)})))
    if len(sizes[ROWS]) > 1:
        others.append(("fewer rows", shape(**{ROWS: near(ROWS, 0.5)})))
    for words, changed in others:
        found.append((f"{first}, {words}", changed, uniform_types(template, first, types, changed), True))
    draw = random.Random(0)
    for number in range(_HELD_OUT):
        changed = shape(
            **{
                LAYERS: near(LAYERS, 0.95 - 0.1 * number),
                NEURONS: near(NEURONS, 0.7 + 0.1 * number),
                ROWS: near(ROWS, (0.8, 1.0, 0.6)[number % 3]),
            }
        )
        each = {name: uniform_types(template, name, types, changed) for name in types}
        mixed = {name: each[draw.choice(list(types))][name] for name in each[types[0]]}
        found.append((f"held out {number + 1}", changed, mixed, False))
    return found


def measure_profile(
    template: Template,
    maker: Maker,
    types: Sequence[str],
    *,
    model: str,
    runtime: str,
    threads: int,
    workload: Workload,
    rounds: int,
) -> Profile:
    """Measure the costs of a model's parts on this machine.

    Args:
        template: The base's file.
        maker: Says which rows stay in smaller vocabularies.
        types: Names of the types to choose from.
        model: The model's name.
        runtime: Name of the runtime.
        threads: Threads for it.
        workload: What is timed.
        rounds: Turns of each probe.

    Raises:
        SourceError: llama.cpp cannot run a probe.
    """
    binding, types = template.binding, priced_types(types)
    sizes = {key: dimension_sizes(binding, key, rows=maker.rows, protected=1, types=types) for key in binding.shape}
    recipes = probe_recipes(template, types, sizes)
    with tempfile.TemporaryDirectory(prefix="ishrink-probes-") as folder:
        files: dict[str, Path] = {}
        vocabulary = binding.shape[ROWS]
        with progress_bar("writing probes of random weights", len(recipes)) as advance:
            for number, (name, shape, chosen, _) in enumerate(recipes):
                kept = maker.kept_tokens(shape[ROWS])
                vocabulary = min(vocabulary, shape[ROWS])
                files[name] = Path(folder) / f"{number}.gguf"
                write_probe(template, shape, chosen, files[name], kept)
                advance(1)
        figures, build = time_files(files, workload, threads=threads, vocabulary=vocabulary, rounds=rounds)
    probes = tuple(
        Probe(name, features(template, shape, chosen, workload, template.in_shape(shape)), figures[name], fitted)
        for name, shape, chosen, fitted in recipes
    )
    return Profile(
        model=model,
        model_type=binding.description.model_type,
        shape=dict(binding.shape),
        runtime=runtime,
        build=build,
        threads=threads,
        workload=workload,
        costs=fit(probes),
        probes=probes,
        base=figures[types[0]],
    )
