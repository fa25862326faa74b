"""One module writes, moves and removes files; whoever does without it is named here, with the reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import densekd

SRC = Path(densekd.__file__).parent
ELSEWHERE = {
    # Data sets: downloaded and unpacked beside their place, checked, then moved there. No run owns them.
    "data/download.py": {"open", "replace", "unlink"},
    "data/get.py": {"rename", "replace", "rmtree", "unlink"},
    "data/unpack.py": {"open"},
    # Libraries that write a file themselves get a temporary name or folder of `files`, which then gives the name.
    "export/hub.py": {"unlink", "write_text"},
    "export/int8.py": {"unlink", "write_bytes"},
    "export/make.py": {"replace", "unlink", "write_bytes"},
    "export/weights.py": {"unlink"},
    "export/writing.py": {"write_bytes"},
    "predict/film.py": {"open", "unlink"},
    # Partial results of `densekd predict`, outdated by whole ones.
    "predict/coverage.py": {"unlink"},
    "predict/videos.py": {"unlink"},
    # What a killed writer of stored maps left, of this process's own name.
    "teacher_cache/writer.py": {"unlink"},
    # An archive in memory; a study's empty folder.
    "predict/archive.py": {"open"},
    "study/comparison.py": {"rmdir"},
    # A lock is an empty file; a probe has no name; the kernel's own; a process's output while it lives.
    "locks.py": {"open"},
    "cli/guard.py": {"open"},
    # A command's own temporary folder.
    "cli/libraries.py": {"copyfile", "rmtree"},
    "runs/memory.py": {"write_text"},
    "study/pool.py": {"open"},
    # Pictures and kernels of a benchmark in a folder that is gone with it.
    "bench/pictures.py": {"save"},
    "bench/soak_runs.py": {"save", "write_text"},
}
CHANGES = {"write_text", "write_bytes", "rename", "unlink", "rmtree", "touch", "symlink_to", "hardlink_to", "rmdir"}
CHANGES |= {"save_file", "memmap", "imwrite", "tofile", "copyfile", "copytree", "truncate", "remove"}
STREAMS = {"stream", "held"}
"""Names of what is in memory where a picture or a program is saved into it."""


LIKELY = re.compile(rf"\b({'|'.join(sorted(CHANGES | {'open', 'save', 'savefig'}))})\(|\.replace\([^,()]+\)")


def changes(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of the calls that change files, with their lines."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = _changing(call)
            if name is not None:
                yield name, call.lineno


def _changing(call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if owner == "files":
        return None
    if name == "open":
        return name if _writes(call, owner) else None
    if name == "replace":  # a text's has two arguments, a dataclass's and a path's one
        return name if len(call.args) == 1 and not call.keywords and owner != "dataclasses" else None
    if name in ("save", "savefig"):
        first = call.args[0] if call.args else None
        plain = not call.args or (isinstance(first, ast.Name) and first.id in STREAMS) or len(call.args) == 3
        return None if plain and owner != "np" else _saving(call, owner)
    return name if name in CHANGES and owner != "sys" and not _of_a_container(call, name) else None


def _saving(call: ast.Call, owner: str) -> str | None:
    arguments = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
    return (
        None if set(arguments) & STREAMS or owner in ("self", "graph") or _attribute(call) == "checkpointer" else "save"
    )


def _attribute(call: ast.Call) -> str:
    return getattr(getattr(call.func, "value", None), "attr", "")


def _of_a_container(call: ast.Call, name: str) -> bool:
    return name == "remove" and getattr(getattr(call.func, "value", None), "id", "") != "os"


def _writes(call: ast.Call, owner: str) -> bool:
    if owner == "os":
        return True
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    modes += [word.value.value for word in call.keywords if word.arg == "mode" and isinstance(word.value, ast.Constant)]
    return any(isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("path.open('wb')", "open"),
        ("open(path, mode='a')", "open"),
        ("os.open(path, flags)", "open"),
        ("path.open('rb')", None),
        ("path.write_text(text)", "write_text"),
        ("files.write_text(path, text)", None),
        ("path.replace(other)", "replace"),
        ("text.replace('a', 'b')", None),
        ("dataclasses.replace(value)", None),
        ("path.unlink(missing_ok=True)", "unlink"),
        ("shutil.rmtree(folder)", "rmtree"),
        ("os.remove(path)", "remove"),
        ("names.remove('x')", None),
        ("torch.save(tensors, path)", "save"),
        ("torch.save(tensors, stream)", None),
        ("figure.savefig(path)", "save"),
        ("figure.savefig(stream, format='png')", None),
        ("picture.save(path)", "save"),
        ("np.save(path, array)", "save"),
        ("save_file(tensors, path)", "save_file"),
    ],
)
def test_what_counts_as_a_change(code: str, expected: str | None) -> None:
    assert [name for name, _ in changes(ast.parse(code))] == ([] if expected is None else [expected])


def test_only_one_module_changes_files() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(SRC.rglob("*.py")):
        name, text = path.relative_to(SRC).as_posix(), path.read_text(encoding="utf-8")
        if name != "files.py" and LIKELY.search(text):
            for change, _line in changes(ast.parse(text)):
                found.setdefault(name, set()).add(change)
    names = [name for name in found.keys() | ELSEWHERE.keys() if found.get(name) != ELSEWHERE.get(name)]
    assert not names, {name: found.get(name, set()) ^ ELSEWHERE.get(name, set()) for name in names}
