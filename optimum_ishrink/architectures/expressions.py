"""The expression language of the architecture descriptions: arithmetic over config keys, and axes of tensors."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any


def _floor_division(dividend: Any, divisor: Any) -> int:
    """Return a whole quotient, also where the config holds a float: a factor of a width, say."""
    return int(dividend // divisor)


_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.FloorDiv: _floor_division,
    ast.Mod: operator.mod,
    ast.In: lambda item, items: item in (items or ()),
    ast.NotIn: lambda item, items: item not in (items or ()),
    ast.Eq: operator.eq,
    ast.LtE: operator.le,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.NotEq: operator.ne,
}


def evaluate(expression: str, lookup: Callable[[str], Any]) -> Any:
    """Evaluate integer arithmetic over config keys: `+ - * / // % **`, comparisons, `'text' in list`, `and`,
    and `a or b` for optional keys.

    Args:
        expression: For example `"head_dim or hidden_size // num_attention_heads"`.
        lookup: Returns the value of a name, or None.

    Raises:
        ValueError: The expression uses anything else.
    """

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return lookup(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
            name = node.left.value if isinstance(node.left, ast.Constant) else None
            is_text = isinstance(node.ops[0], (ast.In, ast.NotIn)) and isinstance(name, str)
            return _OPERATORS[type(node.ops[0])](name if is_text else value(node.left), value(node.comparators[0]))
        if isinstance(node, ast.BoolOp):
            result = None
            for operand in node.values:
                result = value(operand)
                if bool(result) == isinstance(node.op, ast.Or):
                    return result
            return result
        raise ValueError(f"{ast.unparse(node)!r} is not allowed in {expression!r}")

    return value(_parse(expression))


@cache
def _parse(expression: str) -> ast.Expression:
    try:
        return ast.parse(expression, mode="eval")
    except SyntaxError:
        raise ValueError(f"{expression!r} is not an expression") from None


@dataclass(frozen=True)
class Section:
    """One block of an axis: the product of sizes, the last varying fastest, such as `heads*head_dim`."""

    factors: tuple[str, ...]


Axis = tuple[Section, ...]
"""The consecutive sections along an axis; most axes have one."""


@cache
def parse_axes(text: str) -> tuple[Axis, ...]:
    """Parse the axes of a tensor, such as `"[heads*head_dim; kv*head_dim; kv*head_dim], hidden"`.

    Axes are separated by commas; sections packed along one axis are in brackets, separated by semicolons. A scalar
    has no axes: the text is empty.

    Raises:
        ValueError: The text does not have this form.
    """
    axes = []
    for part in text.split(",") if text.strip() else ():
        part = part.strip()
        sections = part[1:-1].split(";") if part.startswith("[") and part.endswith("]") else [part]
        axis = tuple(Section(tuple(factor.strip() for factor in section.split("*"))) for section in sections)
        for section in axis:
            for factor in section.factors:
                if not (factor.isidentifier() or factor.isdigit()):
                    raise ValueError(f"{factor!r} is neither a size nor a number in the axes {text!r}")
        axes.append(axis)
    return tuple(axes)


def axis_length(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the length of an axis for the given sizes."""
    return sum(prod(factor_length(factor, sizes) for factor in section.factors) for section in axis)


def factor_length(factor: str, sizes: Mapping[str, int]) -> int:
    """Return the length of one factor: the value of a number, or that of a size."""
    return int(factor) if factor.isdigit() else sizes[factor]
