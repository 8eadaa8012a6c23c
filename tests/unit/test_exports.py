"""The public names, what importing them costs, and that each says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types

import pytest

import pinfold

HEAVY = (
    "psutil", "pyroute2", "click", "jeepney", "asyncio", "multiprocessing", "ctypes", "subprocess",
    "dataclasses", "json",
)  # fmt: skip
MODULES = [
    "pinfold",
    *(m.name for m in pkgutil.walk_packages(pinfold.__path__, "pinfold.") if "__main__" not in m.name),
]


def test_all_is_exactly_what_is_importable():
    public = {
        name
        for name in dir(pinfold)
        if not name.startswith("_") and not isinstance(getattr(pinfold, name), types.ModuleType)
    } - {"TYPE_CHECKING", "Any"}
    assert public == set(pinfold.__all__)
    assert len(pinfold.__all__) == len(set(pinfold.__all__))


def test_a_star_import_gives_every_name():
    namespace: dict[str, object] = {}
    exec("from pinfold import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(pinfold.__all__)
    assert callable(namespace["run"])


def modules_after(code):
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=20, check=True)
    return set(done.stdout.split())


def test_importing_pinfold_loads_nothing_heavy():
    loaded = modules_after("import pinfold")
    assert "pinfold.runs.supervise" in loaded
    assert not loaded & set(HEAVY)


def test_the_check_of_imports_sees_a_heavy_one():
    """The control."""
    assert "asyncio" in modules_after("import pinfold, asyncio")


def own(value, module):
    return getattr(value, "__module__", None) == module.__name__


def undocumented(module):
    """Public functions, classes, methods and properties of a module that say nothing."""
    found = [] if module.__doc__ else [module.__name__]
    for name, value in vars(module).items():
        if name.startswith("_") or not own(value, module) or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        doc = value.__doc__ or ""
        if not doc or (inspect.isclass(value) and doc.startswith(f"{name}(")):  # what a dataclass says of itself
            found.append(f"{module.__name__}.{name}")
        # A Protocol may say once what holds for all its methods.
        whole = inspect.isclass(value) and not getattr(value, "_is_protocol", False)
        for attribute, member in vars(value).items() if whole else ():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if not attribute.startswith("_") and inspect.isfunction(function) and not function.__doc__:
                found.append(f"{module.__name__}.{name}.{attribute}")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name):
    assert undocumented(importlib.import_module(name)) == []


def test_a_missing_docstring_is_found():
    """The control."""
    module = types.ModuleType("mute", "A module.")
    exec(
        "class Mute:\n    def method(self): pass\n    @property\n    def prop(self): pass\ndef f(): pass", vars(module)
    )
    assert undocumented(module) == ["mute.Mute", "mute.Mute.method", "mute.Mute.prop", "mute.f"]
