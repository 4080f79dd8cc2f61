"""What an axis counts, from its lengths at several sizes."""

from __future__ import annotations

import pytest

from optimum_ishrink.drafting.fitting import Term, fit
from optimum_ishrink.drafting.layouts import layouts

SIZES = [
    {"hidden": 64, "heads": 8, "kv": 4, "head_dim": 16, "ffn": 24},
    {"hidden": 128, "heads": 8, "kv": 4, "head_dim": 16, "ffn": 24},
    {"hidden": 64, "heads": 16, "kv": 4, "head_dim": 16, "ffn": 24},
    {"hidden": 64, "heads": 8, "kv": 8, "head_dim": 16, "ffn": 24},
    {"hidden": 64, "heads": 8, "kv": 4, "head_dim": 32, "ffn": 24},
    {"hidden": 64, "heads": 8, "kv": 4, "head_dim": 16, "ffn": 48},
    {"hidden": 128, "heads": 16, "kv": 8, "head_dim": 32, "ffn": 48},
]
NAMES = {name: name for name in SIZES[0]}


@pytest.mark.parametrize(
    ("formula", "expected", "text"),
    [
        ("hidden", [(1, ("hidden",))], "hidden"),
        ("heads * head_dim", [(1, ("heads", "head_dim"))], "heads*head_dim"),
        ("2 * ffn", [(2, ("ffn",))], "[ffn; ffn]"),
        ("heads * head_dim + 2 * kv * head_dim", [(1, ("heads", "head_dim")), (2, ("kv", "head_dim"))], None),
        ("ffn + 2", [(1, ("ffn",)), (2, ())], "[ffn; 2]"),
        ("1", [(1, ())], "1"),
    ],
)
def test_a_sum_of_products_is_found(formula: str, expected: list[tuple[int, tuple[str, ...]]], text: str) -> None:
    lengths = [eval(formula, {}, sizes) for sizes in SIZES]
    (found,) = fit(lengths, SIZES)
    assert found == tuple(Term(*each) for each in expected)
    assert text is None or layouts(found, NAMES)[0].text == text


def test_sizes_that_are_always_equal_are_all_named() -> None:
    derived = [{**sizes, "head_dim": sizes["hidden"] // sizes["heads"]} for sizes in SIZES]
    found = fit([sizes["hidden"] for sizes in derived], derived)
    assert found == [(Term(1, ("hidden",)),), (Term(1, ("heads", "head_dim")),)]


def test_a_length_that_follows_no_sum_has_no_answer() -> None:
    assert fit([sizes["hidden"] ** 2 + 17 for sizes in SIZES], SIZES) == []


def test_fused_projections_have_several_layouts() -> None:
    qkv = (Term(1, ("heads", "head_dim")), Term(2, ("kv", "head_dim")))
    assert [each.text for each in layouts(qkv, NAMES)] == [
        "[heads*head_dim; kv*head_dim; kv*head_dim]",
        "kv*group_rows*head_dim",
    ]
    assert [each.text for each in layouts((Term(3, ("heads", "head_dim")),), NAMES)][1:] == [
        "heads*3*head_dim",
        "heads*head_dim*3",
    ]
    (latent, _) = layouts((Term(1, ("heads", "nope")), Term(1, ("heads", "rope"))), {"nope": "a", "rope": "b"})
    assert (latent.text, latent.sizes) == ("heads*nope_and_rope", {"nope_and_rope": "a + b"})
