"""The reference page of all options, made from their fields. Imports neither torch nor transformers."""

from __future__ import annotations

import inspect

from optimum_ishrink.configuration import IShrinkConfig
from optimum_ishrink.options.option import Option, options_of, own_options

HEAD = """# Configuration

Every option is an attribute of `IShrinkConfig`, a flag of the command line (underscores become dashes), a key of a
YAML recipe and a key of `ishrink_config.json`. A switch that is on by default has a flag that switches it off, such as
`--no-evaluate`. Unknown names are errors that name the nearest option.

```python
from optimum_ishrink import IShrinkConfig

config = IShrinkConfig(target="params=-15%", calibration=["self"], seed=1)
config.save_pretrained("recipe")
assert IShrinkConfig.from_pretrained("recipe") == config
```
"""

_KINDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "strings": "list of names",
    "ints": "whole number or list",
    "floats": "number or list",
}

_TITLES = {
    "ShapeOptions": "Shape",
    "ScheduleOptions": "Schedule",
    "ImportanceOptions": "Importance",
    "CompensationOptions": "Compensation",
    "CalibrationOptions": "Calibration text",
    "RecoveryOptions": "Recovery",
    "DistillationOptions": "Distillation",
    "CompileOptions": "Compiled layers",
    "QualityOptions": "Quality",
    "TaskOptions": "Tasks",
    "SpeedOptions": "Speed",
    "RunOptions": "Every run",
}


def configuration_page() -> str:
    """Return the page: one section for each options class, one entry for each option."""
    parts = [HEAD]
    for base in IShrinkConfig.__mro__:
        own = own_options(base) if base is not object and base is not IShrinkConfig and _has_options(base) else {}
        if own:
            title = _TITLES.get(base.__name__, base.__name__)
            parts.append(f"## {title}\n\n{base.__doc__ or ''}\n")
            parts += [_entry(option) for option in own.values()]
    return "\n".join(parts)


def _has_options(base: type) -> bool:
    return bool(inspect.get_annotations(base).keys() & options_of(IShrinkConfig).keys())


def _entry(option: Option) -> str:
    kind = _KINDS[option.kind] + (", optional" if option.optional else "")
    spec = option.spec
    allowed = [f"`{value}`" for value in spec.choices] if isinstance(spec.choices, tuple) else []
    bounds = [
        f"{word} {value}" if isinstance(value, int) else f"{word} {value:g}"
        for word, value in (("at least", spec.ge), ("above", spec.gt), ("at most", spec.le), ("below", spec.lt))
        if value is not None
    ]
    lines = [f"### `{option.name}`", "", option.text, "", f"- Type: {kind}", f"- Default: {_default(option)}"]
    flags = ", ".join(f"`{flag}`" for flag in (option.flag, *spec.flags))
    lines.append(f"- Flag: {flags}")
    if allowed:
        lines.append(f"- Allowed: {', '.join(allowed)}")
    if bounds:
        lines.append(f"- Bounds: {', '.join(bounds)}")
    return "\n".join(lines) + "\n"


def _default(option: Option) -> str:
    if option.spec.default_help is not None:
        return option.spec.default_help
    return f"`{option.default_text}`"
