from __future__ import annotations

from optimum_ishrink.core.sizes import size_in_words


def test_a_size_has_the_unit_that_fits() -> None:
    assert [size_in_words(n) for n in (0, 2e5, 999e6, 1.61e10, 3e12)] == [
        "0.0 MB",
        "0.2 MB",
        "999.0 MB",
        "16.1 GB",
        "3,000.0 GB",
    ]
