"""Planning: which shape, and what goes. Arithmetic over scores and configs; it never touches a weight."""

from ..importance.layer_selection import SELECTIONS, choose_greedily, choose_span, removable_spans, summed_costs
from .config_edit import edit_config
from .plan import TARGET_DIMENSIONS, ShapeRequest, make_plan, resolve_shape
from .selection import choose_heads, choose_layers, choose_units, group_similar
from .target import RUNTIMES, default_multiple, parse_target, solve

__all__ = [
    "RUNTIMES",
    "SELECTIONS",
    "TARGET_DIMENSIONS",
    "ShapeRequest",
    "choose_greedily",
    "choose_heads",
    "choose_layers",
    "choose_span",
    "choose_units",
    "default_multiple",
    "edit_config",
    "group_similar",
    "make_plan",
    "parse_target",
    "removable_spans",
    "resolve_shape",
    "solve",
    "summed_costs",
]
