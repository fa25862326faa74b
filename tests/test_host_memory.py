"""How large tensors get their memory: what is asked, what the system says of it, what is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from densekd import host_memory
from densekd.host_memory import ALLOCATOR, HUGE, Found, for_child, notices, read
from runkit import make_place, recipe

SMAPS = """\
5581e0000000-5581e4000000 rw-p 00000000 00:00 0                          [heap]
Size:              65536 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac hg
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac
7f0008000000-7f000c000000 rw-p 00000000 00:00 0
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me ac hg
7f0010000000-7f0014000000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac
7f0018000000-7f001c000000 rw-p 00000000 00:00 0
Size:              65536 kB
"""


def asked(huge: bool | str = "auto", keep: bool | str = "auto") -> SimpleNamespace:
    return SimpleNamespace(huge_pages=huge, keep_memory=keep)


@pytest.mark.parametrize(
    ("address", "huge", "kept"),
    [
        (0x5581E0000000, Found(True, "on"), Found(True, "on")),
        (0x7F0003FFFFFF, Found(False, "off"), Found(False, "off")),
        (0x7F0010000001, Found(True, "on: the system gives them unasked"), Found(False, "off")),
    ],
)
def test_what_the_system_says(address: int, huge: Found, kept: Found) -> None:
    assert read(SMAPS, address) == {"huge_pages": huge, "kept_memory": kept}


def test_asked_for_and_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "enabled"
    policy.write_text("always madvise [never]\n")
    monkeypatch.setattr(host_memory, "_SYSTEM", policy)
    found = read(SMAPS, 0x7F0008000000)["huge_pages"]
    assert found.acting is False
    assert found.words == f"off: asked for, and the system gave none ({policy}: always madvise [never])"


@pytest.mark.parametrize("address", [0x7F0004000000, 0x7F0018000000])
def test_nobody_can_tell(address: int) -> None:
    found = read(SMAPS, address)
    assert {one.acting for one in found.values()} == {None}
    assert all(one.words.startswith("not verified: ") for one in found.values())


def test_a_line_only_where_something_was_set_and_does_not_act(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HUGE, *ALLOCATOR):
        monkeypatch.delenv(name, raising=False)
    state = {"huge_pages": Found(False, "off"), "kept_memory": Found(True, "on")}
    monkeypatch.setattr(host_memory, "look", lambda: state)
    assert notices(asked()) == notices(asked(False, True)) == []
    (line,) = notices(asked(huge=True))
    assert line.startswith(f"runtime.huge_pages: true: does not act: {HUGE} is not set in this process")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    (line,) = notices(asked(keep=False))
    assert line == ("runtime.keep_memory: false: does not act: MALLOC_MMAP_MAX_ is set in this process, and left alone")
    state["huge_pages"] = Found(None, "not verified: nobody knows")
    assert notices(asked(huge=False)) == ["runtime.huge_pages: false: not verified: nobody knows"]


class TestAsking:
    @pytest.fixture(autouse=True)
    def untouched(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        for name in (HUGE, *ALLOCATOR):
            monkeypatch.setenv(name, "")  # so that it is put back
            monkeypatch.delenv(name)
        told: list[str] = []
        monkeypatch.setattr(host_memory, "_asked", host_memory._Asked())
        monkeypatch.setattr(host_memory, "_keep", lambda: told.append("kept") or True)
        return told

    def test_what_the_user_has_set_is_left_alone(self, untouched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(HUGE, "0")
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=7")
        host_memory.ask(asked(True, True))
        assert host_memory.os.environ[HUGE] == "0"
        assert for_child(asked(True)) == {}
        assert untouched == []

    @pytest.mark.parametrize(("huge", "value"), [("auto", "0"), (False, "0"), (True, "1")])
    def test_the_recipe_decides_else(self, huge: bool | str, value: str, untouched: list[str]) -> None:
        assert for_child(asked(huge)) == {HUGE: value}
        host_memory.ask(asked(huge))
        assert host_memory.os.environ[HUGE] == value
        assert for_child(asked(True)) == {HUGE: "1"}  # a child's own recipe decides, not what was set here
        assert untouched == ["kept"]
        host_memory.ask(asked(huge, keep=False))
        assert untouched == ["kept"]


def _state(code: str, **environment: str) -> dict[str, str]:
    kept = {name: value for name, value in host_memory.os.environ.items() if name not in (HUGE, *ALLOCATOR)}
    run = [sys.executable, "-c", f"import json; {code}; print(json.dumps(host_memory.in_words()))"]
    done = subprocess.run(run, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
class TestActing:
    """In processes of their own: torch reads its variable once, and glibc is told for good."""

    @pytest.fixture(autouse=True)
    def verifiable(self) -> None:
        if not sys.platform.startswith("linux") or "[never]" in host_memory._SYSTEM.read_text():
            pytest.skip("this system has no huge pages to give, or does not tell")

    def test_a_plain_import_changes_nothing(self) -> None:
        found = _state("import densekd, densekd.runs; from densekd import host_memory")
        assert found == {"huge_pages": "off", "kept_memory": "off"}

    def test_both_act_once_the_recipe_was_read(self) -> None:
        code = (
            "from densekd.config import load_recipe; import densekd.study.worker; from densekd import host_memory; "
            "recipe = load_recipe('folder', {'runtime.huge_pages': True, 'data.root': '.'}); "
            "host_memory.ask(recipe.runtime)"
        )
        assert _state(code) == {"huge_pages": "on", "kept_memory": "on"}

    def test_a_command_records_what_holds(self, tmp_path: Path) -> None:
        place = make_place(tmp_path / "place")
        (place / "tiny.yaml").write_text(json.dumps(recipe(place)))
        kept = {name: value for name, value in host_memory.os.environ.items() if name not in (HUGE, *ALLOCATOR)}
        changes = ["train.steps=1", "runtime.huge_pages=true", "runtime.keep_memory=false"]
        command = [sys.executable, "-m", "densekd", "train", str(place / "tiny.yaml"), *changes]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "run")], env=kept, capture_output=True, text=True, check=True
        )
        found = json.loads((tmp_path / "run" / "record.json").read_text())
        assert found["environment"]["huge_pages"] == "on"
        assert found["environment"]["kept_memory"] == "off"
        assert "does not act" not in done.stderr
