"""The documents: every file that they name is there, and ARCHITECTURE.md names every file of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pinfold"
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
WORD = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./*-]+\.(?:py|pyi|c|h|md|toml|sh)")
# A file, and after it what it is named for: `spawn/steps.c` `move_into`, `detach`
FOR = re.compile(r"`([\w./]+\.(?:py|c|h))` (`\w+`(?:, `\w+`(?!\.))*)")
FOLDERS = {each.name for base in (ROOT, PACKAGE) for each in base.iterdir() if each.is_dir()}


def is_there(name):
    return any(any(base.glob(name.rstrip("/"))) for base in (ROOT, PACKAGE))


def is_path(word):
    """A file by its suffix, or anything below a folder of the repository or of the package."""
    return FILE.fullmatch(word) is not None or (re.fullmatch(r"[\w./*-]+", word) and word.split("/")[0] in FOLDERS
                                                and "/" in word)  # fmt: skip


def missing(text, directory=ROOT):
    """The files that a document names, and that are not there."""
    links = [link for link in LINK.findall(text) if "://" not in link and not (directory / link).exists()]
    prose = FENCE.sub("", text)
    words = [word for word in WORD.findall(prose) if is_path(word) and not is_there(word)]
    return links + words + [word for word in re.findall(r"\bscripts/\w+", text) if not is_there(word)]


def not_in_file(text):
    """What is said to be in a file, and is not."""
    found = []
    for name, words in FOR.findall(text):
        for base in (ROOT, PACKAGE):
            if (base / name).is_file():
                source = (base / name).read_text()
                found += [(name, word) for word in WORD.findall(words) if not re.search(rf"\b{word}\b", source)]
    return found


def unnamed(table, package=PACKAGE):
    """The files of the package that the table of rooms does not name."""
    named = {path for word in WORD.findall(table) if FILE.fullmatch(word) for path in package.glob(word)}
    sources = {path for pattern in ("*.py", "*.c", "*.h") for path in package.rglob(pattern)}
    return sorted(
        str(path.relative_to(package)) for path in sources - named if path.name not in ("__init__.py", "__main__.py")
    )


def rooms():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    return text.partition("\n## Rooms\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(document):
    text = document.read_text()
    assert missing(text, document.parent) == []
    assert not_in_file(text) == []


def test_every_file_of_the_package_is_in_the_table_of_rooms():
    assert unnamed(rooms()) == []


@pytest.mark.parametrize(
    "text",
    ["`runs/supervision.py`", "`runs/supervision`", "`made_up.py`", "`cli/made_up/*`", "[x](docs/made-up.md)",
     "[x](MADE_UP.md#here)", "`tests/made_up`", "sh scripts/made_up", "```sh\nsh scripts/made_up\n```"],
)  # fmt: skip
def test_a_made_up_name_is_found(text):
    """The control."""
    assert len(missing(text)) in (1, 2)  # a script that is also a word


def test_a_made_up_function_is_found():
    """The control."""
    text = "| x | `spawn/steps.c` `move_into`, `made_up`, `runs/loop.py` `Loop` |"
    assert not_in_file(text) == [("spawn/steps.c", "made_up")]


def test_a_file_that_is_not_in_the_table_is_found(tmp_path):
    """The control."""
    for name in ("a.py", "b.py", "c.c", "__init__.py"):
        (tmp_path / name).touch()
    assert unnamed("| `a.py` | a |", tmp_path) == ["b.py", "c.c"]
    assert unnamed(rooms().replace("`runs/loop.py`", "")) == ["runs/loop.py"]


@pytest.mark.parametrize("text", ["`pinfold.slice`", "`cgroup.kill`", "`and/or`", "`/proc/self/fd`", "`runs/loop.py`"])
def test_what_is_no_file_of_ours_is_left_alone(text):
    assert missing(text) == []
