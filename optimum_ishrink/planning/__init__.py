"""Planning: which shape, and what goes. Arithmetic over scores and configs; it never touches a weight."""

from .config_edit import edit_config
from .plan import ShapeRequest, make_plan, resolve_shape
from .selection import choose_heads, choose_layers, choose_units, group_similar
from .target import default_multiple, parse_target, solve

__all__ = [
    "ShapeRequest",
    "choose_heads",
    "choose_layers",
    "choose_units",
    "default_multiple",
    "edit_config",
    "group_similar",
    "make_plan",
    "parse_target",
    "resolve_shape",
    "solve",
]
