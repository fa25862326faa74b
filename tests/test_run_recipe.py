"""What is wrong with the recipe in a run's folder is told with the file's name."""

from __future__ import annotations

import pytest

from densekd.errors import ConfigError
from densekd.runs import Run


@pytest.mark.parametrize("text", ["name: cut\n", "", "trian: {}\n"])
def test_a_damaged_recipe_of_a_run_is_named_once(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ConfigError) as found:
        _ = Run.load(tmp_path).recipe
    assert str(found.value).count(str(tmp_path / "recipe.yaml")) == 1
