from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from densekd import files
from densekd.errors import CheckpointError


class TestWholeOrNotAtAll:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a" / "b.json"
        files.write_json(path, {"ä": 1})
        assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}

        def full(_handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.write_json(path, {"ä": 2})
        assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
        assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]

    def test_nan_is_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(ValueError, match="JSON compliant"):
            files.write_json(tmp_path / "x.json", {"miou": float("nan")})
        assert not (tmp_path / "x.json").exists()

    def test_a_folder_replaces_another_as_a_whole(self, tmp_path):
        folder = tmp_path / "step-1"
        files.write_folder(folder, {"old": b"1"})
        files.write_folder(folder, {"new": b"2"})
        assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == {"new": b"2"}
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]

    @pytest.mark.parametrize("broken", [1, 2])
    def test_a_folder_set_aside_comes_back(self, tmp_path, monkeypatch, broken):
        from pathlib import Path

        folder = tmp_path / "step-1"
        files.write_folder(folder, {"old": b"1"})
        real, calls = Path.rename, []

        def rename(self, target):
            calls.append(self)
            if len(calls) == broken:
                raise KeyboardInterrupt
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                files.write_folder(folder, {"new": b"2"})
        files.sweep_temporaries(tmp_path)
        assert (folder / "old").read_bytes() == b"1"
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]

    def test_sweeping_takes_only_what_is_half_written(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for name in (".log.csv.12.part", "sub/.x.9.part", "keep.part", ".hidden"):
            (tmp_path / name).write_text("")
        (tmp_path / ".step-2.7.part").mkdir()
        files.sweep_temporaries(tmp_path)
        assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden", "keep.part", "sub"]

    def test_a_removed_folder_never_bears_its_name_half_empty(self, tmp_path):
        files.write_folder(tmp_path / "a", {"x": b"1"})
        files.remove_folder(tmp_path / "a")
        files.remove_folder(tmp_path / "a")
        assert list(tmp_path.iterdir()) == []


class TestTensors:
    def test_any_layout_and_tied_tensors(self, tmp_path):
        weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        tensors = {
            "a": weight,
            "tied": weight,
            "turned": torch.randn(3, 5).t(),
            "none": torch.empty(0),
            "n": torch.tensor(7),
        }
        files.write_tensors(tmp_path / "x.safetensors", tensors, {"from": "test"})
        for found in (load_file(tmp_path / "x.safetensors"), files.read_tensors(tmp_path / "x.safetensors")):
            assert set(found) == set(tensors)
            for name, tensor in tensors.items():
                assert torch.equal(found[name], tensor)
                assert found[name].is_contiguous()

    def test_damage_and_absence_name_the_file(self, tmp_path):
        path = tmp_path / "x.safetensors"
        with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file"):
            files.read_tensors(path)
        path.write_bytes(b"not tensors")
        with pytest.raises(CheckpointError, match=r"x\.safetensors: not a readable safetensors file"):
            files.read_tensors(path)
        with pytest.raises(CheckpointError, match=r"y\.json: no such file"):
            files.read_json(tmp_path / "y.json")
        (tmp_path / "y.json").write_bytes(b"\xff{")
        with pytest.raises(CheckpointError, match=r"y\.json: not readable as JSON"):
            files.read_json(tmp_path / "y.json")

    def test_digests(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc")
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert files.sha256(b"abc") == files.sha256_file(tmp_path / "x") == expected
