"""densekd in unfriendly places, in the environment of the tests; and that `tools/places.py` finds what it looks for."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from densekd.errors import ResourceError
from densekd.training import loading

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.executable)


@pytest.fixture
def places(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import places

    yield places
    sys.modules.pop("places", None)


class TestFindings:
    """What a session may not do is found, what it may is left."""

    def of(self, places, *events, code=0, said="", left=None):
        seen = places.Seen(code, said, list(events), left or {})
        return seen.findings(Path("/runs"), Path("/tmp/t"))

    def test_allowed(self, places):
        events = [("open", "/runs/a/record.json"), ("os.mkdir", "/tmp/t/densekd-x"), ("open", "/dev/null")]
        events += [("open", "/lib/__pycache__/a.pyc"), ("open", "/runs"), ("subprocess.Popen", "/sbin/ldconfig")]
        assert self.of(places, *events, said="files checked: train 4\n", left={"/home": []}) == []

    @pytest.mark.parametrize(
        ("event", "found"),
        [
            (("open", "/home/u/.cache/x"), "a write elsewhere: open /home/u/.cache/x"),
            (("os.mkdir", "/runs2"), "a write elsewhere: os.mkdir /runs2"),
            (("socket.connect", "('127.0.0.1', 80)"), "a connection: socket.connect ('127.0.0.1', 80)"),
            (("socket.getaddrinfo", "'huggingface.co'"), "a connection: socket.getaddrinfo 'huggingface.co'"),
        ],
    )
    def test_not_allowed(self, places, event, found):
        assert self.of(places, event) == [found]

    def test_sockets_of_a_long_tmpdir_are_elsewhere(self, places):
        seen = places.Seen(0, "", [("os.mkdir", "/tmp/pymp-12345678")])
        assert seen.findings(Path("/runs"), Path("/t" * 36)) == []
        assert seen.findings(Path("/runs"), Path("/t")) == ["a write elsewhere: os.mkdir /tmp/pymp-12345678"]

    def test_exit_code_leftovers_and_noise(self, places):
        assert self.of(places, code=2, said="error: x") == ["exit code 2: error: x"]
        assert self.of(places, left={"/tmp/t": ["/tmp/t/x 3 4"]}) == ["left in /tmp/t: /tmp/t/x 3 4"]
        line = "UserWarning: cannot reach https://huggingface.co"
        assert self.of(places, said=f"step 1\n{line}\n") == [f"said: {line}"]


class TestSockets:
    def test_a_short_name_is_left_alone(self, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp")
        assert loading._for_sockets() is None

    def test_a_long_one_gives_way(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 71)
        monkeypatch.setattr(loading, "_SHORT", ("/does/not/exist", str(tmp_path)))
        assert loading._for_sockets() == str(tmp_path)
        # Python's own names behind it fit just so: /pymp-XXXXXXXX/listener-XXXXXXXX, and a zero at the end.
        assert loading._NAME + len("/pymp-12345678/listener-12345678") + 1 == 103

    def test_nowhere(self, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 90)
        monkeypatch.setattr(loading, "_SHORT", ("/does/not/exist",))
        with pytest.raises(ResourceError, match=r"/xxx.*set TMPDIR to a shorter one, or runtime\.workers=0"):
            loading._for_sockets()


@pytest.mark.slow
def test_the_watch_sees_what_a_process_and_its_children_do(places, tmp_path):
    script = tmp_path / "session.py"
    script.write_text(
        "import os, socket, subprocess, sys\n"
        f"open({str(tmp_path / 'one')!r}, 'w').close()\n"
        f"fd = os.open({str(tmp_path)!r}, os.O_RDONLY); os.mkdir('two', dir_fd=fd); os.rmdir('two', dir_fd=fd)\n"
        f"os.rename({str(tmp_path / 'one')!r}, {str(tmp_path / 'three')!r})\n"
        "try: socket.create_connection(('127.0.0.1', 1), timeout=1)\n"
        "except OSError: pass\n"
        "code = 'import os; os.makedirs(os.path.expanduser(\"~/.cache/x\"))'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
        "print('UserWarning: x', file=sys.stderr)\n"
    )
    places.TOOLS, tools = tmp_path, places.TOOLS
    (tmp_path / "watch").symlink_to(tools / "watch")
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    seen = places.session(PYTHON, tmp_path / "work", home=tmp_path / "home", temporary=tmp_path / "tmp")
    found = "\n".join(seen.findings(tmp_path / "work", tmp_path / "tmp"))
    for words in (
        f"a write elsewhere: open {tmp_path / 'one'}",
        f"a write elsewhere: os.mkdir {tmp_path / 'two'}",
        f"a write elsewhere: os.rmdir {tmp_path / 'two'}",
        f"a write elsewhere: os.rename {tmp_path / 'three'}",
        "a connection: socket.connect ('127.0.0.1', 1)",
        f"a write elsewhere: os.mkdir {tmp_path / 'home' / '.cache'}",
        f"left in {tmp_path / 'home'}",
        "said: UserWarning: x",
    ):
        assert words in found
    assert seen.programs == [sys.executable]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder"), [("read_only_home", "work"), ("small_tmpdir", 'it\'s a "place" #1: ünï 名')]
)
def test_a_place(places, tmp_path, name, folder):
    try:
        found = getattr(places, name)(PYTHON, tmp_path / folder)
    except places.NotTried as why:
        pytest.skip(str(why))
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["friendly", "no_home", "odd_names", "missing_folders", "long_tmpdir", "started_afresh"]
)
def test_further_places(places, tmp_path, name):
    assert getattr(places, name)(PYTHON, tmp_path) == []
