"""Docstrings of what is public: every name has an entry on an API page, arguments and errors are told, examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

import densekd
from densekd import errors
from densekd.errors import DensekdError, DtypeError, ShapeError, TapError

pytestmark = pytest.mark.slow  # imports all that is public
ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "docs" / "api"
_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)
_SECTIONS = ("Args", "Attributes", "Returns", "Raises")
_MODULES = {"functional", "losses"}  # public names that are modules: what they hold has the entries
_MADE_BY_US = {"FrozenTeacher"}  # nobody calls these classes: what does is documented


def named() -> list[str]:
    """What the API pages show, by the names they use."""
    return [name for page in sorted(API.glob("*.md")) for name in _DIRECTIVE.findall(page.read_text(encoding="utf-8"))]


def thing(name: str) -> Any:
    """What a dotted name stands for: the longest part of it that is a module is imported."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name}: no such module")


def sections(docstring: str | None) -> dict[str, list[str]]:
    """Names of the entries in each section of a docstring."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in inspect.cleandoc(docstring or "").split("\n"):
        if line and not line.startswith(" "):
            section = line[:-1] if line[:-1] in _SECTIONS and line.endswith(":") else ""
        elif section and re.match(r"    \S", line) and ": " in line:
            names = [name.strip().lstrip("*") for name in line.partition(": ")[0].split(",")]
            found.setdefault(section, []).extend(names)
    return found


def unnamed(call: Callable[..., Any], docstring: str | None) -> list[str]:
    """Arguments of a function or class that its docstring leaves out."""
    entries = sections(docstring)
    known = {*entries.get("Args", []), *entries.get("Attributes", [])}
    parameters = inspect.signature(call).parameters
    return [name for name in parameters if name not in known | {"self", "cls"}]


def raised(function: Any, depth: int = 1) -> dict[type, str]:
    """Errors of densekd that a function raises itself, or one of densekd's that it calls by name; by whom.

    A call inside `try` is left out: what it raises may be caught.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = function.__globals__
    found: dict[type, str] = {}
    caught = {
        id(node) for part in ast.walk(tree) if isinstance(part, ast.Try) for b in part.body for node in ast.walk(b)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            error = names.get(node.exc.func.id)
            if inspect.isclass(error) and issubclass(error, DensekdError):
                found[error] = function.__name__
        elif depth and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and id(node) not in caught:
            called = names.get(node.func.id)
            if inspect.isfunction(called) and called.__module__.startswith("densekd."):
                for error in raised(called, depth - 1):
                    found.setdefault(error, called.__name__)
    return found


def untold(function: Any, docstring: str | None) -> list[str]:
    """Errors that a docstring's Raises leaves out; an error's base stands for it."""
    entries = sections(docstring).get("Raises", [])
    told = [getattr(errors, name, None) or function.__globals__.get(name) for name in entries]
    bases = tuple(error for error in told if inspect.isclass(error))
    return [f"{error.__name__} (of {who})" for error, who in raised(function).items() if not issubclass(error, bases)]


def methods(kind: type) -> Iterator[tuple[str, Any, str | None]]:
    """Functions of a class that its entry shows, and the docstring that has to speak of each."""
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not inspect.isfunction(function) or not function.__code__.co_filename.endswith(".py"):
            continue  # what a dataclass makes has no source
        if name in ("__init__", "__post_init__"):
            yield name, function, kind.__doc__
        elif not name.startswith("_") and function.__doc__:
            yield name, function, function.__doc__


def left_out(name: str) -> list[str]:
    """What the docstrings of one entry leave out."""
    found = thing(name)
    if inspect.isfunction(found):
        return [*unnamed(found, found.__doc__), *untold(found, found.__doc__)]
    if not inspect.isclass(found):
        return []
    if getattr(found, "_is_protocol", False):
        return []
    made = "__init__" in vars(found) or hasattr(found, "__dataclass_fields__") or hasattr(found, "_fields")
    missing = unnamed(found, found.__doc__) if made and found.__name__ not in _MADE_BY_US else []
    for method, function, docstring in methods(found):
        if not method.startswith("__"):
            missing += [f"{method}: {argument}" for argument in unnamed(function, docstring)]
        missing += [f"{method}: {error}" for error in untold(function, docstring)]
    return missing


def test_every_public_name_has_an_entry() -> None:
    entries = {name.rpartition(".")[2] for name in named()}
    public = {name for name in densekd.__all__ if not name.startswith("_")} - _MODULES
    held = {
        name for module in _MODULES for name, found in vars(thing(f"densekd.{module}")).items() if _own(found, module)
    }
    assert (public | held) - entries == set()


def _own(found: Any, module: str) -> bool:
    own = (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith(f"densekd.{module}.")
    return own and not found.__name__.startswith("_")


def test_every_error_has_an_entry() -> None:
    family = {
        name for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, DensekdError)
    }
    assert family - {name.rpartition(".")[2] for name in named()} == set()


def test_every_record_has_an_entry() -> None:
    records = thing("densekd.records")
    models = {name for name, found in vars(records).items() if inspect.isclass(found) and issubclass(found, BaseModel)}
    assert models - {name.rpartition(".")[2] for name in named()} == set()


def test_no_entry_stands_twice() -> None:
    entries = named()
    assert sorted(set(entries)) == sorted(entries)


@pytest.mark.parametrize("name", named())
def test_docstrings_name_arguments_and_errors(name: str) -> None:
    assert thing(name).__doc__ or not inspect.isroutine(thing(name))
    assert left_out(name) == []


@pytest.mark.parametrize("name", [name for name in named() if re.search(r"\.records\.|manifest", name, re.IGNORECASE)])
def test_records_describe_themselves(name: str) -> None:
    model = thing(name)
    if inspect.isclass(model) and issubclass(model, BaseModel):
        assert model.__doc__
        assert [field for field, about in model.model_fields.items() if not about.description] == []


def _refuse(limit: int) -> None:
    if limit > 3:
        raise ShapeError("too many")


def _caller(images: torch.Tensor, *, size: int = 2) -> None:
    """Do something.

    Args:
        images: some.
    """
    _refuse(size)
    if size < 0:
        raise DtypeError("negative")
    try:
        raise TapError("never seen")
    except TapError:
        pass


def test_what_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unnamed(_caller, _caller.__doc__) == ["size"]
    monkeypatch.setattr(_refuse, "__module__", "densekd.test")
    assert {error.__name__ for error in raised(_caller)} >= {"ShapeError", "DtypeError"}
    assert untold(_caller, "Do.\n\n    Raises:\n        ArgumentError: a base of both.\n        TapError: too.") == []
    assert "DtypeError (of _caller)" in untold(_caller, "Do.\n\n    Raises:\n        ShapeError: one.")


def modules() -> list[str]:
    """Modules that hold examples."""
    source = ROOT / "src"
    held = [
        path for path in sorted(source.rglob("*.py")) if re.search(r"^ *>>> ", path.read_text("utf-8"), re.MULTILINE)
    ]
    return [".".join(path.relative_to(source).with_suffix("").parts) for path in held]


@cache
def examples(module: str) -> list[doctest.DocTest]:
    """The examples of a module; beside its own names they find `torch` and `densekd`."""
    found = importlib.import_module(module)
    given = {**vars(found), "torch": torch, "densekd": densekd}
    return [test for test in doctest.DocTestFinder().find(found, globs=given) if test.examples]


def test_examples_give_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for module in modules():
        for test in examples(module):
            torch.manual_seed(0)
            runner.run(test, out=said.append)
    assert said == []
    assert runner.summarize(verbose=False).attempted > 100


def test_main_names_have_examples() -> None:
    shown = {test.name for module in modules() for test in examples(module)}
    functions = [found for found in vars(densekd.functional).values() if inspect.isfunction(found)]
    losses = [
        found for found in vars(densekd.losses).values() if _own(found, "losses") and found.__name__ != "Adversary"
    ]
    main = [densekd.Distiller, densekd.Term, densekd.freeze_teacher, densekd.preflight, densekd.TeacherInput]
    wanted = {f"{found.__module__}.{found.__qualname__}" for found in [*functions, *losses, *main]}
    assert wanted - shown == set()
    assert len(shown) >= 50


def test_a_wrong_example_is_found() -> None:
    said: list[str] = []
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    doctest.DocTestRunner().run(wrong, out=said.append)
    assert said
