from __future__ import annotations

import pytest

from optimum_ishrink.architectures.expressions import evaluate, parse_axes

VALUES = {
    "hidden_size": 32,
    "num_attention_heads": 8,
    "head_dim": None,
    "flag": False,
    "factor": 1.5,
    "kinds": ["moe", "mlp"],
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("hidden_size", 32),
        ("head_dim or hidden_size // num_attention_heads", 4),
        ("num_attention_heads or hidden_size", 8),
        ("hidden_size % num_attention_heads == 0", True),
        ("hidden_size * 2 - 1 >= 63 and 5 > 4", True),
        ("flag and hidden_size", False),
        ("2 + 3 != 5", False),
        ("factor * hidden_size // 7", 6),
        ("(hidden_size / 2) ** (1 / 2)", 4.0),
        ("'moe' in kinds and 'dense' not in kinds", True),
        ("'moe' in head_dim", False),
    ],
)
def test_arithmetic(expression: str, value: object) -> None:
    assert evaluate(expression, VALUES.get) == value


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "hidden_size.real", "[1]", "'a'", "'a' == flag", "1 < 2 < 3", "1 +"]
)
def test_nothing_else_is_allowed(expression: str) -> None:
    with pytest.raises(ValueError, match="not allowed|not an expression"):
        evaluate(expression, VALUES.get)


def test_axes() -> None:
    axes = parse_axes("[heads*head_dim; kv*head_dim], ffn*2")
    assert [[section.factors for section in axis] for axis in axes] == [
        [("heads", "head_dim"), ("kv", "head_dim")],
        [("ffn", "2")],
    ]
    with pytest.raises(ValueError, match="neither a size nor a number"):
        parse_axes("hidden, a+b")
