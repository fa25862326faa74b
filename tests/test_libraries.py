"""What a command asks of libraries: matplotlib's folder is gone with it, nobody reports, a user may have no name."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

import pytest

from densekd.cli import libraries
from densekd.cli.guard import guarded
from densekd.cli.libraries import considerate


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A home and a TMPDIR of the test's; the variables as before afterwards."""
    for name in (*libraries._SILENT, "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def test_matplotlib_gets_a_folder_that_is_gone_afterwards(tmp_path):
    with considerate():
        folder = Path(os.environ["MPLCONFIGDIR"])
        assert folder.parent == tmp_path / "tmp"
        assert folder.is_dir()
        assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
        assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert "MPLCONFIGDIR" not in os.environ
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "home").iterdir()) == []


def test_the_folder_goes_with_a_command_that_fails(tmp_path):
    @guarded
    def command():
        assert list((tmp_path / "tmp").iterdir()) != []
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        command()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_the_user_has_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "mine"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    with considerate():
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "mine")
        assert os.environ["WANDB_ERROR_REPORTING"] == "true"
        assert list((tmp_path / "tmp").iterdir()) == []
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "mine")


def test_a_list_of_fonts_that_is_there_is_read_and_left(monkeypatch, tmp_path):
    monkeypatch.setattr(libraries.sys, "platform", "linux")
    there = tmp_path / "home" / ".cache" / "matplotlib"
    there.mkdir(parents=True)
    (there / "fontlist-v390.json").write_text("{}")
    (there / "tex.cache").mkdir()
    with considerate():
        folder = Path(os.environ["MPLCONFIGDIR"])
        assert [entry.name for entry in folder.iterdir()] == ["fontlist-v390.json"]
        (folder / "fontlist-v390.json").write_text("changed")
    assert (there / "fontlist-v390.json").read_text() == "{}"


def test_without_a_place_for_temporary_files_matplotlib_does_as_it_does(monkeypatch):
    def refused(prefix):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with considerate():
        assert "MPLCONFIGDIR" not in os.environ


def test_a_user_without_a_name(monkeypatch, tmp_path):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 4711")

    with considerate():
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(os, "getuid", lambda: 4711, raising=False)
    with considerate():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "tmp" / "torchinductor_uid_4711")


def test_a_loading_process_does_not_take_the_folder_along(monkeypatch, tmp_path):
    with considerate():
        folder = Path(os.environ["MPLCONFIGDIR"])
        inner = considerate()
        monkeypatch.delenv("MPLCONFIGDIR")
        inner.__enter__()
        its = Path(os.environ["MPLCONFIGDIR"])
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: 1)
            inner.__exit__(None, None, None)
        assert its.is_dir()
        assert its != folder
