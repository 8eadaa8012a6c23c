"""What typing has to make classes with, without loading it: that takes longer than all else that a run needs.

Type checkers see typing's own. At run time a NamedTuple is the collections.namedtuple of its annotations, a TypedDict
is a dict, and a Protocol is any class. Annotations are never evaluated; what only they use is imported where
TYPE_CHECKING.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true

if TYPE_CHECKING:
    from typing import NamedTuple, Protocol, TypedDict
else:
    from collections import namedtuple

    class _Named(type):
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, object]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])  # noqa: PYI024
            for key, value in body.items():
                if key not in fields and key not in ("__module__", "__qualname__"):
                    setattr(made, key, value)
            made.__qualname__ = body["__qualname__"]
            return made

    class NamedTuple(metaclass=_Named):
        """A tuple with named fields: `class Point(NamedTuple)`, with annotations and defaults."""

    class Protocol:
        """What others have to look like."""

    class TypedDict(dict):
        """A dict with known keys."""

        def __init_subclass__(cls, *, total: bool = True) -> None:
            """`total`: for type checkers."""


__all__ = ["TYPE_CHECKING", "NamedTuple", "Protocol", "TypedDict"]
