"""The arguments of `pinfold run`, read without click: that takes longer to load than many a command to run.

What is not plain is left to click, which has the better words: an unknown option, a value that is missing or not one of
the known, a request for help. Where both give an answer it is the same.
"""

from __future__ import annotations

from pinfold.cli.options import OPTIONS, Option, name_of
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class _NotPlain(Exception):
    pass


def parse(arguments: list[str]) -> tuple[list[str], dict[str, Any]] | None:
    """The command and the options by name, as click would have them; None: let click look at it."""
    known = {flag: option for option in OPTIONS for flag in option.flags.replace("/", " ").split()}
    found = {name_of(option): () if option.many else option.default for option in OPTIONS}
    rest = iter(arguments)
    try:
        for argument in rest:
            if argument == "--":
                return list(rest), found
            if not argument.startswith("-") or argument == "-":
                return [argument, *rest], found
            if argument.startswith("--"):
                flag, equals, value = argument.partition("=")
                _take(known, found, flag, value if equals else None, rest)
            else:
                _take_letters(known, found, argument, rest)
    except _NotPlain:
        return None
    return [], found


def _take_letters(known: dict[str, Option], found: dict[str, Any], argument: str, rest: Any) -> None:
    """Such as -qt5: switches, and one with a value at the end."""
    for at, letter in enumerate(argument[1:], 2):
        flag = f"-{letter}"
        if flag in known and known[flag].value is not None:
            _take(known, found, flag, argument[at:] or None, rest)
            return
        _take(known, found, flag, None, rest)


def _take(known: dict[str, Option], found: dict[str, Any], flag: str, value: str | None, rest: Any) -> None:
    option = known.get(flag)
    if option is None or (option.value is None and value is not None):
        raise _NotPlain
    name = name_of(option)
    if option.value is None:
        found[name] = not flag.startswith("--no-")
        return
    if value is None and (value := next(rest, None)) is None:
        raise _NotPlain
    if option.choices and value not in option.choices:
        raise _NotPlain
    found[name] = (*found[name], value) if option.many else value
