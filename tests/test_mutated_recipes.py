"""Recipes and command lines with something wrong in them: each is valid, or ends in words that name the place."""

from __future__ import annotations

import copy
import os
import random
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from densekd.cli.main import main
from densekd.cli.printable import printable
from densekd.config import dump_recipe, load_recipe, recipe_digest
from densekd.errors import ConfigError

RECIPE: dict[str, Any] = {
    "name": "x",
    "seed": 3,
    "data": {
        "name": "folder",
        "root": "data",
        "classes": ["a", "b"],
        "on_error": "skip",
        "masks": {"format": "id_map", "id_map": {0: 0, 7: 1}},
        "augment": {"size": [32, 48], "scale": [0.5, 2.0], "jitter": {"hue": 0.1}},
        "extra": {"night": {"split": "val", "include": "^n"}},
    },
    "student": {"model": "smp:PSPNet", "options": {"encoder_name": "resnet18"}, "auxiliary": {"tap": "encoder.layer3"}},
    "teacher": {"model": "smp:PSPNet", "checkpoint": {"path": "runs/teacher", "strip_prefix": "net."}},
    "task": {"auxiliary": 0.4},
    "terms": [{"method": "channelwise", "options": {"temperature": 4.0}}, {"method": "pixelwise", "weight": 2}],
    "train": {"steps": 10, "optimizer": {"name": "sgd", "lr": 0.1}},
    "distill": {"cache": {"root": "cache", "views": 2}},
    "runtime": {"workers": 2, "precision": "float32"},
    "track": ["tensorboard"],
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, -(10**400), 10**5000, 2**63, 0.0, -0.0, 1e308, -1e-320, float("nan"),
    float("inf"), "", " ", "x" * 5000, "\0", "a\nb", "日本 \U0001f642", "\udce9", "nan", "1e3", "~", "../..",
    "~nobody/x", "a:b", "smp:", "file.py:", ":", "[", "(", "*", [], {}, [[]], [None], [[[[1]]]], {"": 1}, {"x": {}},
    {1: 2}, {None: 1}, {"name": "cityscapes"}, ["tensorboard", "tensorboard"], [0, 0], [-1, 5], [float("nan")], (1, 2),
    b"bytes", {1, 2}, object, 1j,
)  # fmt: skip


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value of a nested one."""
    if len(way) == 8:  # what is nested without end is changed near its top
        return []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, entry in entries for found in ((*way, key), *places(entry, (*way, key)))]


def changed(chance: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A recipe with one to three changes, and the first keys of the ways to them."""
    raw, told = copy.deepcopy(RECIPE), []
    for _ in range(chance.choice((1, 1, 2, 3))):
        way = chance.choice(places(raw))
        told.append(str(way[0]))
        holder: Any = raw
        for key in way[:-1]:
            holder = holder[key]
        last, how = way[-1], chance.randrange(6)
        if how == 0:
            del holder[last]
        elif how == 1 and isinstance(holder, dict):
            name = chance.choice(("X", 3, None, f"{last}_", f" {last}", "日本"))
            holder[name] = holder.pop(last)
            told.append(str(name))
        elif how == 2 and isinstance(holder, dict):
            holder[f"{last}s"] = copy.deepcopy(holder[last])
        elif how == 3:
            holder[last] = copy.deepcopy(chance.choice([raw[key] for key in raw]))
        elif how == 4:
            for _ in range(chance.choice((1, 2, 60, 150))):
                holder[last] = [holder[last]] if chance.random() < 0.7 else {"x": holder[last]}
        else:
            holder[last] = copy.deepcopy(chance.choice(ODD))
        if not raw:
            break
    return raw, told


def judge(raw: dict[str, Any], told: list[str]) -> bool:
    """Whether a changed recipe is refused: with words that name a changed place, or what lacks because of it."""
    words = ""
    try:
        recipe_digest(load_recipe(raw))
    except ConfigError as error:
        words = str(error)
    assert not words or (words.startswith("recipe: ") and any(key in words for key in told)), (told, words)
    return bool(words)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(seed=st.integers(0, 2**40))
def test_sixty_mutated_recipes(seed: int) -> None:
    judge(*changed(random.Random(seed)))


@pytest.mark.slow
def test_two_thousand_mutated_recipes() -> None:
    refused = sum(judge(*changed(random.Random(seed))) for seed in range(2000))
    assert 1000 < refused < 2000


TEXT = yaml.safe_dump(RECIPE, sort_keys=False)


def shaken(chance: random.Random) -> bytes:
    """The text of a recipe with lines, characters or bytes moved, doubled, removed or replaced."""
    lines = TEXT.split("\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(lines))
        how, line = chance.randrange(9), lines[place]
        if how == 0:
            del lines[place]
        elif how == 1:
            lines.insert(place, line)
        elif how == 2:
            lines[place] = chance.choice(("\t", " ", "  ", "- ", "? ", "#", "%")) + line
        elif how == 3:
            lines[place] = line.replace(
                ":", chance.choice(("", "::", ": !!python/object:os.system", ": *a", ": &a", ": |"))
            )
        elif how == 4:
            lines.insert(
                place, chance.choice(("<<: *x", "x: &x {a: *x}", "---", "...", "- - - -", "}", "{{", "!!map", "''"))
            )
        elif how == 5:
            swapped = chance.randrange(len(lines))
            lines[place], lines[swapped] = lines[swapped], line
        elif how == 6:
            cut = chance.randrange(len(line) + 1)
            lines[place] = line[:cut] + chance.choice(
                ("\0", "\x07", "\ufeff", "\ud7ff", "\u2028", "'", '"', "&", "@", "`")
            )
        elif how == 7:
            lines[place] = line.lstrip()
        else:
            lines[place] = line.upper()
        lines = lines or [""]
    data = bytearray("\n".join(lines).encode())
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.choice((None, None, None, chance.randrange(len(data) + 1)))])


def judge_text(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    told = "recipe"
    try:
        recipe = load_recipe(path)
    except ConfigError as error:
        told = str(error)
    else:
        assert load_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert told.startswith("recipe")


def bomb(depth: int = 12, width: int = 10) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "expected a mapping of keys to values, got NoneType"),
        (b"\n\n# nothing\n", "expected a mapping"),
        (b"- a\n- b", "expected a mapping of keys to values, got list"),
        (b"just words", "got str"),
        (b"\xff\xfe\x00\x01\x80", "cannot be read|not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read|not valid YAML"),
        (b"name: x\n\tseed: 1", "not valid YAML: .*line 2"),
        (b"name: x\nname: y", "'name' is given twice"),
        (b"train: {steps: 1, steps: 2}", "'steps' is given twice"),
        (b"seed: !!python/object/apply:os.system [exit]", "not valid YAML: could not determine a constructor"),
        (b"seed: !mine 3", "could not determine a constructor"),
        (b"seed: *there", "undefined alias"),
        (b"a: &a [*a]", "nested more than 50 levels deep; does an alias"),
        (b"<<: 3", "not valid YAML: .*merg"),
        (b"? [a, b]\n: 1", "recipe"),
        (b"? {a: b}\n: 1", "unhashable key"),
        pytest.param(b"[" * 500 + b"]" * 500, "nested more than 50 levels deep", marks=pytest.mark.slow),
        (b"a: " + b"{b: " * 500 + b"1" + b"}" * 500, "nested more than 50 levels deep"),
        pytest.param(bomb().encode(), "more than 100000 values; do aliases", marks=pytest.mark.slow),
        (b"\xef\xbb\xbf" + TEXT.encode() + b"zz: 1", "unknown key 'zz'"),
        (b"---\nname: x\n---\nname: y", "expected a single document"),
        (b"seed: 1e999", "seed: expected a finite number, got inf"),
        (b"seed: .nan", "seed: expected a finite number, got nan"),
        (b"seed: " + b"9" * 5000, "seed|digits"),
        (b"seed: 1:2:3", "seed|is missing"),
        (b"name: 2026-99-99\nseed: x", "seed"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as found:
        load_recipe(path)
    assert len(str(found.value)) < 3000


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    database=None,
)
@given(seed=st.integers(0, 2**40))
@example(seed=0)
def test_eight_mutated_texts(tmp_path: Path, seed: int) -> None:
    judge_text(tmp_path / "r.yaml", shaken(random.Random(seed)))


@pytest.mark.slow
def test_five_hundred_mutated_texts(tmp_path: Path) -> None:
    for seed in range(500):
        judge_text(tmp_path / "r.yaml", shaken(random.Random(seed)))


WORDS = (
    "distill", "train", "evaluate", "predict", "compare", "report", "doctor", "export", "inspect", "data", "check",
    "get", "list", "recipes", "tune", "cache", "--out", "--seed", "--resume", "--force", "--dry-run", "--json",
    "--split", "--quiet", "--nothing", "--", "-", "-x", "", " ", "=", "x=", "=x", "train.steps", "train.steps=",
    "train.steps=ten", "train..steps=1", ".=1", "train.steps.x=1", "train.steps=[1",
    "train.steps=!!python/object:os.system", "camvid.yaml",
    "no/such", "/dev/null", "\0", "\udce9", "日本", "x" * 3000, "--seed=-1", "--seed=1e3", "--out=", "--split=\n",
    "data.root=", "terms.7.weight=1", "data=3", "student.model=smp:Nothing", "seed=nan", "seed=" + "9" * 30,
    "runtime.workers=-1",
)  # fmt: skip


def command_line(chance: random.Random) -> list[str]:
    """A command that is not right in one to four words, or right and without effect."""
    line = chance.choice((
        ["distill", "camvid", "--dry-run"], ["evaluate", "runs/x"], ["predict", "runs/x", "a.png"],
        ["compare", "camvid"],
        ["data", "check", "folder"], ["report", "runs/x"], ["export", "runs/x", "--to", "onnx"], ["list", "recipes"],
        ["doctor", "camvid"],
    ))  # fmt: skip
    for _ in range(chance.choice((1, 1, 2, 4))):
        place, word = chance.randrange(len(line) + 1), chance.choice(WORDS)
        line = [*line[:place], word, *line[place + chance.choice((0, 1)) :]]
    # What could be right is not begun: a key is added that no recipe has.
    return [*line, "no.such.key=1"] if {"distill", "train", "compare", "tune", "doctor", "cache"} & set(line) else line


def forked(line: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of `densekd` in a process of its own that need not import anything again."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _become_the_command(line, folder)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return code, out, err


def _become_the_command(line: list[str], folder: Path) -> NoReturn:
    """What the interpreter does for `densekd LINE`, from its first line to its exit code."""
    code: Any = 1
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(one, mode) for one, mode in ((0, "r"), (1, "w"), (2, "w")))
        sys.argv = ["densekd", *line]
        main()
    except SystemExit as left:
        code = left.code
        if isinstance(code, str):  # as the interpreter does
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


def started(line: list[str], folder: Path) -> tuple[int, str, str]:
    """The same of `python -m densekd`, begun from nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "densekd", *line], cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def judge_line(line: list[str], code: int, out: str, err: str) -> bool:
    """Whether a command line is refused: with words that name what is wrong in it, or what lacks."""
    assert code in (0, 2), (line, code, err)
    assert "Traceback" not in err + out, (line, err)
    assert "internal error" not in err, (line, err)
    if code == 0:
        return False
    assert err.startswith("error: "), (line, err)
    words = {part for word in line for part in (word, word.partition("=")[0], Path(word).name) if part.strip()}
    shown = {printable(word).encode("utf-8", "backslashreplace").decode() for word in words}
    assert any(word in err for word in shown) or re.search(r"[A-Z]{3,}|--\w+|RECIPE", err), (line, err)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking")
def test_twenty_mutated_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import densekd.cli.app
    import densekd.runs  # noqa: F401 - the processes need not

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DENSEKD_DEBUG", raising=False)
    lines = [command_line(random.Random(seed)) for seed in range(20)]
    assert sum(judge_line(line, *forked(line, tmp_path)) for line in lines) > 12


@pytest.mark.long
def test_fifty_mutated_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DENSEKD_DEBUG", raising=False)
    lines = [command_line(random.Random(1000 + seed)) for seed in range(50)]
    lines = [[word.replace("\0", "0") for word in line] for line in lines]  # no system hands a zero byte on
    assert sum(judge_line(line, *started(line, tmp_path)) for line in lines) > 30
