"""Architectures as data: one JSON description per family, bound to a model's config."""

from .spec import (
    DIMENSIONS,
    Binding,
    BoundTensor,
    Description,
    bind,
    check_shape,
    describe,
    descriptions,
    is_ignored,
    nearest_expressible,
    register_architecture,
)

__all__ = [
    "DIMENSIONS",
    "Binding",
    "BoundTensor",
    "Description",
    "bind",
    "check_shape",
    "describe",
    "descriptions",
    "is_ignored",
    "nearest_expressible",
    "register_architecture",
]
