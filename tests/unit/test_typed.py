"""Our NamedTuple is typing's, as far as it is used."""

from __future__ import annotations

import pickle
import typing

import pytest

from pinfold import typed


class Ours(typed.NamedTuple):
    """Words."""

    first: int
    second: str = "b"
    third: tuple[int, ...] = ()

    @property
    def twice(self) -> int:
        """A property."""
        return 2 * self.first

    @classmethod
    def of(cls, text: str):
        return cls(int(text))


class Theirs(typing.NamedTuple):
    """Words."""

    first: int
    second: str = "b"
    third: tuple[int, ...] = ()

    @property
    def twice(self) -> int:
        """A property."""
        return 2 * self.first

    @classmethod
    def of(cls, text: str):
        return cls(int(text))


@pytest.mark.parametrize(
    "ask",
    [
        lambda kind: kind(1),
        lambda kind: kind(1, third=(2,))._asdict(),
        lambda kind: kind(1)._replace(second="c"),
        lambda kind: kind.of("7").twice,
        lambda kind: kind._fields,
        lambda kind: kind._field_defaults,
        lambda kind: kind.__doc__,
        lambda kind: kind.__module__,
        lambda kind: list(kind.__annotations__),
        lambda kind: kind.__mro__[1:],
        lambda kind: [hash(kind(1)), kind(1) == (1, "b", ()), len(kind(1)), [*kind(1)]],
        lambda kind: pickle.loads(pickle.dumps(kind(1))),
        lambda kind: hasattr(kind(1), "__dict__"),
    ],
)
def test_it_answers_as_that_of_typing_does(ask):
    assert ask(Ours) == ask(Theirs)


def test_its_name_is_its_own():
    assert (Ours.__name__, Ours.__qualname__, repr(Ours(1))) == ("Ours", "Ours", "Ours(first=1, second='b', third=())")


def test_a_field_without_a_value_is_an_error():
    with pytest.raises(TypeError, match="first"):
        Ours()
    with pytest.raises(AttributeError):
        Ours(1).first = 2


def test_a_typed_dict_is_a_dict():
    class Options(typed.TypedDict, total=False):
        a: int

    assert Options(a=1) == {"a": 1}
