"""Labels: what users call folds and runs, and know them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pinfold.errors import UsageError
from pinfold.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


_NAME_AT_MOST: Final = 64
_AT_MOST: Final = 32
_VALUE_AT_MOST: Final = 256


def checked_labels(labels: Mapping[str, str] | None) -> Mapping[str, str]:
    """Labels as given by a user. Raises UsageError."""
    if not labels:
        return {}
    if not isinstance(labels, Mapping):
        raise UsageError(f"labels is {type(labels).__name__}: must be a mapping of names to texts")
    for name, value in labels.items():
        if not isinstance(name, str) or not _is_name(name):
            raise UsageError(f"label {name!r:.80}: a name has up to 64 letters, digits, '_', '-', '.' and '/'")
        if not isinstance(value, str) or len(value) > _VALUE_AT_MOST or not value.isprintable():
            raise UsageError(
                f"label {name}={value!r:.80}: a value is text of up to {_VALUE_AT_MOST} printable characters"
            )
    if len(labels) > _AT_MOST:
        raise UsageError(f"{len(labels)} labels: at most {_AT_MOST}")
    return dict(labels)


def parse_labels(settings: Iterable[str], what: str) -> dict[str, str]:
    """Labels to give, each written as NAME=VALUE. `what`: the option that they were given by. Raises UsageError."""
    found: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"{what} {setting}: expected NAME=VALUE")
        if name in found:
            raise UsageError(f"{what} {setting}: {name} is given twice; say which")
        found[name] = value
    return dict(checked_labels(found))


def parse_wanted(settings: Iterable[str]) -> list[tuple[str, str | None]]:
    """Labels to look for, each written as NAME or NAME=VALUE; None: whatever its value. Raises UsageError."""
    found: list[tuple[str, str | None]] = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        checked_labels({name: value})
        found.append((name, value if equals else None))
    return found


def _is_name(text: str) -> bool:
    plain = text.isascii() and all(c.isalnum() or c in "_./-" for c in text)
    return plain and text[:1].isalnum() and len(text) <= _NAME_AT_MOST
