"""The support matrix: which dimensions of each architecture can be cut, made from the descriptions."""

from __future__ import annotations

import re
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_ishrink.architectures.composite import Composite, composites
from optimum_ishrink.architectures.description import EXPERTS, LAYERS, NEURONS, Description, descriptions
from optimum_ishrink.architectures.runtime_limits import RuntimeLimits, llama_cpp_limits
from optimum_ishrink.core.table import Row, markdown_table

HEADINGS = {
    "num_hidden_layers": "depth",
    "num_key_value_heads": "KV groups",
    "num_attention_heads": "query heads",
    "intermediate_size": "neurons",
    "num_experts": "experts",
    "vocab_size": "rows",
}

HYBRIDS, LATENT, MIXTURES, DENSE = "Hybrids", "Latent attention", "Mixtures of experts", "Dense decoders"
GROUPS = {
    DENSE: "All layers have attention and one MLP.",
    MIXTURES: "A router sends each token to some of many MLPs. Neurons are those of an expert.",
    HYBRIDS: "Beside attention or in its place, layers have a recurrent state or a convolution, which stays as it is.",
    LATENT: "Keys and values are kept as one short vector a token. A KV group is one head, with its query.",
}

OTHERS: dict[tuple[str, ...], str] = {
    (
        "zamba2",
    ): "its hybrid layers run one transformer block in common, with adapters of their own that are numbered by "
    "the position among the hybrid layers: a removed layer renumbers the adapters of all behind it",
    ("hrm_text",): "two stacks of layers run in cycles, each many times for a token, so that num_hidden_layers counts "
    "passes and no layer can be removed from one pass alone",
    (
        "jetmoe",
    ): "one config key, num_local_experts, counts the experts of attention and of the MLP, which are not the "
    "same experts",
    ("bert", "roberta", "electra", "xlnet", "..."): "encoders, also where transformers has a causal class for them: "
    "their models are not trained to write text",
    ("bart", "mbart", "pegasus", "whisper", "..."): "the decoder reads what an encoder returns; alone it is no model",
}
"""Causal classes of transformers that are not described, and why."""

PROVED_WITH = {
    "gemma3n": "its vision tower is a model of timm, so the tests prove its cuts where timm and torchvision are "
    "installed"
}
"""Composites whose cuts are proved with libraries that this project does not depend on."""


class Notes:
    """Numbered reasons: the same one has the same number wherever it is named."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, *reasons: str) -> str:
        """Return the numbers of some reasons, as they are put behind a cell's word."""
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self.reasons]
        self.reasons += new
        found = sorted(self.reasons.index(reason) + 1 for reason in set(reasons))
        return f" [{', '.join(map(str, found))}]" if found else ""

    def text(self) -> str:
        """Return the reasons as a list."""
        return "\n".join(f"{number}. {reason}" for number, reason in enumerate(self.reasons, start=1))


def group_of(description: Description) -> str:
    """Return the table that an architecture is in: by what its sizes count, and a hybrid's before its experts'."""
    if any(size.endswith("_kernel") or size == "block" for size in description.sizes):
        return HYBRIDS
    if description.sizes.get("cache", "0") != "0":
        return LATENT
    return MIXTURES if "experts" in description.sizes else DENSE


def cell(description: Description, key: str, notes: Notes) -> str:
    """Return what the table says of a dimension: a word, and the numbers of its reasons."""
    dimension = description.dimensions[key]
    if key == EXPERTS and "experts" not in description.sizes:
        return "-"
    reason = dimension.fixed or dimension.inexact
    word = "no" if dimension.fixed else "inexact" if dimension.inexact else "yes"
    if reason:
        reason = "the description does not offer it" if reason.startswith("its description has no") else reason
        return ("yes or " if dimension.when else "") + word + notes.mark(reason)
    written = set(dimension.writes) - {"head_dim"}
    width = set(description.dimensions[NEURONS].writes) if key == EXPERTS else set()  # rules for the width of experts
    rules = [
        rule.reason.replace(f"the {description.model_type} config class", "the config class")
        for rule in description.rules
        if key != LAYERS and written & (names := set(re.findall(r"\w+", rule.require))) and not width & names
    ]
    change = description.class_change
    if change and "heads" in key and rules:
        rules = [f"{rules[0]}; other shapes are written as `{change.model_type}` with `--allow-class-change`"]
    return word + notes.mark(*rules)


def architecture_tables(notes: Notes) -> str:
    """Return the tables of the decoders, each under a heading."""
    parts = []
    for group, words in GROUPS.items():
        members = [each for each in descriptions().values() if group_of(each) == group]
        keys = [key for key in HEADINGS if key != EXPERTS or any("experts" in each.sizes for each in members)]
        rows: list[Row] = [
            (
                f"`{each.model_type}`",
                each.models,
                *(cell(each, key, notes) for key in keys),
                in_llama_cpp(each.model_type),
            )
            for each in members
        ]
        header = ("architecture", "models", *(HEADINGS[key] for key in keys), "llama.cpp")
        parts.append(f"## {group}\n\n{words}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def in_llama_cpp(model_type: str) -> str:
    """Return whether tiny models of an architecture predict the same in llama.cpp, exported as they are."""
    limits = llama_cpp_limits().get(model_type)
    if limits is None:
        return "not tried"
    if not limits.converted:
        return "no"
    if not limits.agrees:
        return "differs"
    return "yes" if limits == RuntimeLimits() else "with limits"


def composite_table(notes: Notes) -> str:
    """Return the table of the models of several parts."""
    rows: list[Row] = []
    for model_type, each in composites().items():
        if each.refused is not None:
            rows.append((f"`{model_type}`", each.models, "-", "-", "no" + notes.mark(each.refused)))
            continue
        fixed = {key: reason for part in each.text_parts.values() for key, reason in part.fixed.items()}
        stays = "no" + notes.mark(each.first_layers.reason) if each.first_layers else "yes"
        if fixed:
            cut = f"not {', '.join(HEADINGS[key] for key in fixed)}" + notes.mark(*fixed.values())
        else:
            cut = "as the decoder"
        if model_type in PROVED_WITH:
            cut += notes.mark(PROVED_WITH[model_type])
        rows.append((f"`{model_type}`", each.models, decoder_of(each), stays, cut))
    return markdown_table(("model", "models", "text decoder", "first layers can go", "cuts"), rows)


def decoder_of(composite: Composite) -> str:
    """Return the decoder of a composite: the one that its config class names, or any where it names none."""
    kind: Any = CONFIG_MAPPING[composite.model_type].sub_configs.get(composite.text_config)
    model_type = str(getattr(kind, "model_type", ""))
    part = composite.text_parts.get(model_type)
    return f"`{part.described_as if part else model_type}`" if model_type else "any above"


def architectures_page() -> str:
    """Return the support matrix."""
    notes = Notes()
    tables, parts = architecture_tables(notes), composite_table(notes)
    others = "\n".join(
        f"- {', '.join(name if name == '...' else f'`{name}`' for name in names)}: {reason}."
        for names, reason in OTHERS.items()
    )
    return f"""# Supported architectures

{len(descriptions())} decoders, each one JSON file in `optimum_ishrink/architectures/`, and the text part of \
{sum(each.refused is None for each in composites().values())} models of several parts.

- *yes*: the cut is exact, which the tests prove for every architecture and dimension
  ([exactness](../explanation/exactness.md)).
- *no*: the dimension cannot be changed.
- *inexact*: it can, but the result differs from the original with the removed units set to zero.
- *yes or no*, *yes or inexact*: it depends on the model's config.
- A number in brackets leads to a condition or a reason [below](#reasons).

The dimensions are the [flags](command-line.md) `--num-hidden-layers` (depth), `--num-key-value-heads` (KV groups, cut
or merged), `--num-attention-heads` (query heads in a group), `--intermediate-size` (neurons), `--num-experts`
(experts) and `--vocab-size` (rows).

*llama.cpp* says whether its converter takes the architecture and the file predicts what transformers does, measured on
tiny models with the versions of the `edge` extra: *with limits* where llama.cpp assumes some of the shape, so that
`export` refuses other shapes; *differs* where a file is written and predicts something else; *no* where there is none,
which `export` says before any work.

{tables}

## Models of several parts

The text decoder is cut; a vision tower, a projector and the processor's files are carried over as they are.

{parts}

`export` to GGUF takes decoders alone. For these, llama.cpp's own converter reads the folder.

## Reasons

{notes.text()}

## Not described

Causal classes of transformers that cannot be cut, or not yet:

{others}

To add your own, see [add an architecture](../how-to/add-an-architecture.md). A model with a parameter that its
description does not account for is refused, with the parameter's name. What is written loads with transformers 4.57
and 5 alike where both have the class, with equal logits (`make compat`).
"""
