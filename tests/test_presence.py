"""A run whose folder is moved or removed while it trains ends with that, and begins no second folder."""

from __future__ import annotations

import shutil

import pytest

from densekd.errors import RunError
from densekd.runs import train
from densekd.training.presence import Presence
from runkit import Heard, log_without_times, make_place, recipe


class Moving(Heard):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def step(self, taken, steps, result):
        if taken == 3:
            self.act()


def test_a_folder_that_held_no_recipe_is_not_asked_for(tmp_path):
    Presence(tmp_path / "new").require()
    (tmp_path / "recipe.yaml").touch()
    presence = Presence(tmp_path)
    presence.require()
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(RunError, match="moved, renamed or removed"):
        presence.require()


@pytest.mark.slow
def test_a_run_that_is_moved_ends_and_goes_on_where_it_is(tmp_path):
    asked = recipe(make_place(tmp_path / "place"))
    old, new = tmp_path / "old", tmp_path / "new"
    moving = Moving(lambda: old.rename(new))
    with pytest.raises(RunError, match=r"old: was moved, renamed or removed .* --resume"):
        train(asked, out=old, progress=moving)
    assert not old.exists()
    assert not [line for line in moving.lines if "was moved" in line]
    train(asked, out=new, resume=True)
    undisturbed = train(asked, out=tmp_path / "whole")
    assert log_without_times(new) == log_without_times(undisturbed.path)
    assert (new / "student.safetensors").read_bytes() == (undisturbed.path / "student.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_is_removed_ends(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match="moved, renamed or removed"):
        train(recipe(make_place(tmp_path / "place")), out=run, progress=Moving(lambda: shutil.rmtree(run)))
    assert not run.exists()
