"""Every public name has an example in its docstring, and every example runs."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import jaxsim as js

NAMES = [m.name for m in pkgutil.walk_packages(js.__path__, "jaxsim.") if "__main__" not in m.name]
FACES = [
    name
    for name in NAMES
    if name.count(".") == 1 and "__all__" in vars(importlib.import_module(name))
]


def source(name):
    return Path(importlib.util.find_spec(name).origin).read_text()


def described(value):
    """What an example can stand in: functions and classes, not modules, constants or aliases."""
    ours = str(getattr(value, "__module__", "")).startswith("jaxsim")
    return ours and (inspect.isclass(value) or inspect.isfunction(value))


@pytest.mark.parametrize("name", [name for name in NAMES if ">>> " in source(name)])
def test_the_examples_of_a_module_run(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("face", ["jaxsim", *FACES])
def test_every_public_name_has_an_example(face):
    module = importlib.import_module(face)
    members = {f"{face}.{name}": getattr(module, name) for name in module.__all__}
    for name, value in list(members.items()):
        if inspect.ismodule(value):
            members |= {f"{name}.{n}": getattr(value, n) for n in getattr(value, "__all__", ())}
    lacking = [n for n, v in members.items() if described(v) and ">>> " not in (v.__doc__ or "")]
    assert lacking == []
