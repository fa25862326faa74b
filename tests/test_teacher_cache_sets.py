from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch

from densekd import files
from densekd.errors import ArgumentError, CacheError, DtypeError, NonFiniteError, ResourceError, ShapeError
from densekd.locks import try_lock
from densekd.teacher_cache import CacheKey, MapReader, claim, is_building
from densekd.teacher_cache.encoding import ENCODINGS, encode
from densekd.teacher_cache.segment import SUFFIX
from mapstore import IMAGES, KEY, PAIRS, TAPS, VIEWS, fill, make_set, maps_of, samples, writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A whole set of two segments; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    with writer(folder) as made:
        fill(made, PAIRS[:4])
        made.commit()
        fill(made)
        assert made.finish().whole
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "set")
    return tmp_path / "set"


def expect(found: dict, pairs=PAIRS, encoding="bfloat16") -> None:
    for row, (view, index) in enumerate(pairs):
        for tap, tapped in maps_of(view, index).items():
            assert torch.equal(found[tap][row], encode(tapped, encoding).back)


class TestRoundTrip:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_every_sample(self, tmp_path, encoding):
        summary = make_set(tmp_path / "set", encoding=encoding)
        with MapReader(tmp_path / "set", KEY) as reader:
            assert reader.summary == summary
            assert (summary.whole, summary.samples, summary.missing) == (True, 6, 0)
            assert summary.raw_bytes == 6 * 4 * (3 * 5 * 7 + 4 * 2 * 3)
            assert summary.bytes == sum(path.stat().st_size for path in (tmp_path / "set").glob("*.maps"))
            assert reader.verify() == []
            found = reader.read(samples())
            assert {tap: tuple(each.shape) for tap, each in found.items()} == {t: (6, *s) for t, s in TAPS.items()}
            assert all(each.dtype == torch.float32 for each in found.values())
            expect(found, encoding=encoding)
            some = [(1, 2), (0, 0), (1, 2)]
            expect(reader.read(samples(some)), some, encoding)
            assert set(reader.read(samples(some), ["logits"])) == {"logits"}
            assert reader.read(samples([]))["logits"].shape == (0, 3, 5, 7)
            assert reader.fingerprint(1, 2) == 1002
            assert reader.fingerprints(samples(some)).tolist() == [1002, 0, 1002]

    def test_the_error_of_softened_maps_is_kept(self, tmp_path):
        summary = make_set(tmp_path / "set", encoding="int8", temperature=2.0)
        for tap in TAPS:
            errors = []
            for pair in PAIRS:
                given = maps_of(*pair)[tap]
                before, after = (
                    torch.softmax(t.flatten(1).double() / 2, 1) for t in (given, encode(given, "int8").back)
                )
                errors.append(((after - before).norm() / before.norm()).item())
            assert summary.error[tap].mean == pytest.approx(sum(errors) / 6, rel=1e-4)
            assert summary.error[tap].max == pytest.approx(max(errors), rel=1e-4)

    def test_taps_in_any_order_are_one_set(self, tmp_path):
        make_set(tmp_path / "a")
        make_set(tmp_path / "b", taps=dict(reversed(TAPS.items())))
        for name in ("header.json", "set.json", "rank000-00000.maps"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_pickled_and_forked(self, whole):
        reader = MapReader(whole, KEY)
        again = pickle.loads(pickle.dumps(reader))
        reader.close()
        expect(again.read(samples()))
        child = os.fork()
        if child == 0:
            try:
                expect(again.read(samples()))
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(CacheError, match="this reader was closed; open another"):
            reader.read(samples())

    def test_progress_of_a_check(self, whole):
        told = []
        assert MapReader(whole, None).verify(lambda done, total: told.append((done, total))) == []
        assert told == [(done, 6) for done in range(1, 7)]


class TestSharedAndResumed:
    def test_two_ranks_write_each_sample_once(self, tmp_path):
        with writer(tmp_path / "set", rank=0, world=2) as first, writer(tmp_path / "set", rank=1, world=2) as second:
            assert sorted(first.missing() + second.missing()) == PAIRS
            fill(second)
            assert not second.finish().whole
            fill(first)
            assert first.finish().whole
            assert second.finish().whole
        expect(MapReader(tmp_path / "set", KEY).read(samples()))
        assert len(list((tmp_path / "set").glob(f"*{SUFFIX}"))) == 2

    def test_another_number_of_ranks_goes_on(self, tmp_path):
        with writer(tmp_path / "set", rank=2, world=3) as third:
            fill(third)
        with writer(tmp_path / "set") as alone:
            assert alone.missing() == [pair for pair in PAIRS if pair not in ((0, 2), (1, 2))]
            fill(alone)
            assert alone.finish().whole
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_a_sample_that_is_stored_twice_counts_once(self, whole, tmp_path):
        with writer(tmp_path / "set") as made:
            fill(made)
            made.commit()
            shutil.copy(whole / f"rank000-00000{SUFFIX}", tmp_path / "set" / f"rank001-00000{SUFFIX}")
            summary = made.finish()
        expected = MapReader(whole, KEY).summary
        assert (summary.samples, summary.missing, summary.error) == (6, 0, expected.error)
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_what_was_not_committed_is_written_again(self, tmp_path):
        with writer(tmp_path / "set") as made:
            fill(made, PAIRS[:2])
            made.commit()
            fill(made, PAIRS[2:4])
            left = list((tmp_path / "set").glob(f".*{SUFFIX}*"))
            kept = left[0].read_bytes()
        # as a kill would leave it: the second file without its name
        (tmp_path / "set" / f"rank000-00001{SUFFIX}").unlink()
        left[0].write_bytes(kept)
        with writer(tmp_path / "set") as made:
            assert made.missing() == PAIRS[2:]
            assert not left[0].exists()
            fill(made)
            assert made.finish().whole
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_ctrl_c_loses_nothing_whole(self, tmp_path):
        def interrupted() -> None:
            with writer(tmp_path / "set") as made:
                fill(made, PAIRS[:3])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        with writer(tmp_path / "set") as made:
            assert made.missing() == PAIRS[3:]

    def test_commits_by_size_and_by_time(self, tmp_path):
        with writer(tmp_path / "size", commit_bytes=1) as made:
            fill(made)
            assert len(list((tmp_path / "size").glob(f"rank*{SUFFIX}"))) == 6
        with writer(tmp_path / "time", commit_seconds=-1.0) as made:
            fill(made)
            assert len(list((tmp_path / "time").glob(f"rank*{SUFFIX}"))) == 5

    def test_a_whole_set_needs_nothing(self, copy):
        with writer(copy) as made:
            assert made.missing() == []
            assert made.finish() == MapReader(copy, KEY).summary

    def test_one_launch_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(claim, "_PAUSE", 0)
        folder = tmp_path / "set"
        assert not is_building(folder)
        with writer(folder, rank=0, world=2) as first:
            assert is_building(folder)
            for rank, world in ((0, 2), (0, 1), (2, 3)):
                with pytest.raises(CacheError, match="another process is building this set; wait for it"):
                    writer(folder, rank=rank, world=world)
            writer(folder, rank=1, world=2).close()
            first.close()
            first.close()
            assert not is_building(folder)
            writer(folder).close()

    def test_who_only_looks_keeps_nobody_from_building(self, tmp_path, monkeypatch):
        """Ranks that begin at once look at the same file, which an earlier launch of another size left behind."""
        with writer(tmp_path / "set", rank=0, world=3):
            pass
        looking = try_lock(tmp_path / "set" / ".world-3.lock")
        done = threading.Timer(0.03, looking.release)
        done.start()
        with writer(tmp_path / "set", rank=0, world=4):
            monkeypatch.setattr(claim, "_PAUSE", 0)
            assert is_building(tmp_path / "set")
        done.join()

    def test_two_ranks_that_find_the_set_whole_at_once(self, tmp_path, monkeypatch):
        """The other sweeps up before it marks the set, and takes the file that is about to get its name."""
        real, swept = Path.replace, []

        def replace(self, target):
            if Path(target).name == "set.json" and not swept:
                swept.append(self)
                files.sweep_temporaries(tmp_path / "set")
            return real(self, target)

        for rank in (0, 1):
            with writer(tmp_path / "set", rank=rank, world=2) as made:
                fill(made, made.missing())
        with writer(tmp_path / "set", rank=1, world=2) as made, monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            assert made.finish().whole
        assert swept
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_a_removed_file_is_made_again(self, copy):
        (copy / f"rank000-00001{SUFFIX}").unlink()
        with pytest.raises(CacheError, match=r"rank000-00001\.maps: missing; make its maps again by `densekd cache"):
            MapReader(copy, KEY)
        with writer(copy, commit_bytes=1) as made:
            assert made.missing() == PAIRS[4:]
            assert "rank000-00001.maps removed since the set was whole" in made.notices[0]
            fill(made)
            assert made.finish().notices == tuple(made.notices)
        expect(MapReader(copy, KEY).read(samples()))

    @pytest.mark.parametrize("name", ["set.json", "header.json"])
    def test_a_removed_mark_or_header_is_written_again(self, copy, name):
        before = (copy / name).read_bytes()
        (copy / name).unlink()
        with writer(copy) as made:
            assert made.missing() == []
            assert made.finish().whole
        assert (copy / name).read_bytes() == before
        expect(MapReader(copy, KEY).read(samples()))


class TestDiskFull:
    # in the third of six samples, in the sixth, in the index of all
    @pytest.mark.parametrize(("room", "kept"), [(700, 1), (1500, 4), (1900, 5)])
    def test_what_was_whole_is_kept(self, tmp_path, monkeypatch, room, kept):
        real = files.GrowingFile.write

        def write(self, data):
            taken = max(0, min(room - self.size, len(data)))
            real(self, data[:taken])
            if taken < len(data):
                raise OSError(28, "No space left on device")

        def build(made):
            fill(made)
            made.commit()

        with writer(tmp_path / "set") as made:
            with monkeypatch.context() as patch:
                patch.setattr(files.GrowingFile, "write", write)
                with pytest.raises(ResourceError, match="the disk is full; what was committed is kept: make room, and"):
                    build(made)
            assert made.missing() == PAIRS[kept:]
            assert not list((tmp_path / "set").glob(".rank000-*part"))
            fill(made)
            assert made.finish().whole
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_no_room_at_all(self, tmp_path, monkeypatch):
        def full(self, data):
            raise OSError(28, "No space left on device")

        with writer(tmp_path / "set") as made:
            with monkeypatch.context() as patch:
                patch.setattr(files.GrowingFile, "write", full)
                with pytest.raises(ResourceError, match="the disk is full"):
                    fill(made)
            assert made.missing() == PAIRS
            assert not list((tmp_path / "set").glob(".rank000-*part"))
            fill(made)
            assert made.finish().whole

    def test_no_room_for_a_commit(self, tmp_path, monkeypatch):
        def full(_handle):
            raise OSError(28, "No space left on device")

        with writer(tmp_path / "set") as made:
            fill(made, PAIRS[:2])
            made.commit()
            fill(made, PAIRS[2:4])
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(ResourceError, match="the disk is full"):
                    made.commit()
            assert made.missing() == PAIRS[2:]
            fill(made)
            assert made.finish().whole
        expect(MapReader(tmp_path / "set", KEY).read(samples()))

    def test_a_folder_that_takes_no_files(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CacheError, match="a file; expected the folder of a set"):
            writer(tmp_path / "file")
        with pytest.raises(ResourceError, match=r"cannot be written: Not a directory"):
            writer(tmp_path / "file" / "set")


class TestRefusedWrites:
    def test_samples(self, tmp_path):
        with writer(tmp_path / "set", rank=1, world=2) as made:
            with pytest.raises(ArgumentError, match=r"view 2 of image 0: the set has views 0\.\.1 of images 0\.\.2"):
                made.write(2, 0, maps_of(0, 0))
            with pytest.raises(ArgumentError, match="view 0 of image 2 belongs to rank 0 of 2, not to rank 1"):
                made.write(0, 2, maps_of(0, 2))
            made.write(0, 1, maps_of(0, 1))
            with pytest.raises(ArgumentError, match="view 0 of image 1 is stored already"):
                made.write(0, 1, maps_of(0, 1))
            with pytest.raises(ArgumentError, match="fingerprint: expected a whole number from 0"):
                made.write(1, 0, maps_of(0, 0), fingerprint=-1)

    def test_maps(self, tmp_path):
        good = maps_of(0, 0)
        with writer(tmp_path / "set") as made:
            with pytest.raises(ArgumentError, match=r"'logit' is no tap of this set; did you mean 'logits'\?"):
                made.write(0, 0, {**good, "logit": good["logits"]})
            with pytest.raises(DtypeError, match=r"expected a float tensor \(3, 5, 7\) for tap 'logits', got none"):
                made.write(0, 0, {"encoder.layer4": good["encoder.layer4"]})
            with pytest.raises(DtypeError, match=r"got torch.int64"):
                made.write(0, 0, {**good, "logits": good["logits"].long()})
            with pytest.raises(
                ShapeError, match=r"expected \(3, 5, 7\) for tap 'logits'.*got \(3, 7, 5\); every image"
            ):
                made.write(0, 0, {**good, "logits": good["logits"].mT})
            bad = {**good, "encoder.layer4": good["encoder.layer4"].log()}
            with pytest.raises(NonFiniteError, match=r"tap 'encoder\.layer4', view 1 of image 2: .* not finite"):
                made.write(1, 2, bad)
            assert made.missing() == PAIRS

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"taps": {}}, "taps is empty"),
            ({"taps": {"logits": (3, 4)}}, r"tap 'logits': expected \(C, H, W\), whole numbers from 1, got \(3, 4\)"),
            ({"taps": {"logits": (3, 0, 4)}}, "whole numbers from 1"),
            ({"views": 0}, "views: expected a whole number from 1, got 0"),
            ({"images": 1.5}, r"images: expected a whole number from 1, got 1\.5"),
            (
                {"encoding": "bfloat"},
                r"encoding: expected one of bfloat16, int8, got 'bfloat'; did you mean 'bfloat16'",
            ),
            ({"temperature": 0}, r"temperature: expected a number above 0, got 0\.0"),
            ({"class_taps": ("logit",)}, "class_taps: 'logit' is no tap of this set; did you mean 'logits'"),
            ({"rank": 2, "world": 2}, "rank must be from 0 to world - 1, got rank 2 of 2"),
        ],
    )
    def test_values_that_no_set_has(self, tmp_path, given, words):
        with pytest.raises(ArgumentError, match=words):
            writer(tmp_path / "set", **given)
        assert not (tmp_path / "set").exists()

    def test_foreign_folders_and_other_sets(self, copy, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        with pytest.raises(CacheError, match=r"holds files that are not a set's \(thesis\.tex\)"):
            writer(tmp_path / "mine")
        values = json.loads(json.dumps(KEY.values))
        values["data"]["augment"]["flip"] = 0.0
        with pytest.raises(CacheError, match=r"\(data\.augment\.flip: 0\.5 there, 0\.0 here\)"):
            writer(copy, key=CacheKey(values))
        with pytest.raises(CacheError, match=r"encoding: 'bfloat16' there, 'int8' here"):
            writer(copy, encoding="int8")


class TestRefusedReads:
    def test_another_key(self, whole):
        values = json.loads(json.dumps(KEY.values))
        values["data"]["augment"]["flip"] = 0.0
        values["teacher"] = "ffff"
        words = (
            r"the stored maps are of other values \(data\.augment\.flip: 0\.5 there, 0\.0 here; teacher: '0a1b' there, "
            r"'ffff' here\).*make a set of these values by `densekd cache build RECIPE`, or remove this one by"
        )
        with pytest.raises(CacheError, match=words):
            MapReader(whole, CacheKey(values))
        assert MapReader(whole, None).header.key == KEY

    def test_not_whole_missing_foreign(self, tmp_path):
        with writer(tmp_path / "set") as made:
            fill(made, PAIRS[:2])
        with pytest.raises(CacheError, match="not whole: 2 of 6 samples are stored; go on with `densekd cache build"):
            MapReader(tmp_path / "set", KEY)
        with pytest.raises(CacheError, match="no stored maps there; make them by `densekd cache build RECIPE`"):
            MapReader(tmp_path / "nowhere", KEY)
        (tmp_path / "mine").mkdir()
        with pytest.raises(CacheError, match=r"no set of stored maps: it holds no header\.json"):
            MapReader(tmp_path / "mine", KEY)

    def test_another_version(self, copy):
        content = json.loads((copy / "header.json").read_text())
        del content["sha256"]
        from densekd.teacher_cache.header import write_signed

        write_signed(copy / "header.json", {**content, "version": 2})
        with pytest.raises(CacheError, match=r"written in version 2 of the format .* this densekd reads version 1"):
            MapReader(copy, KEY)

    def test_samples(self, whole):
        reader = MapReader(whole, KEY)
        with pytest.raises(ArgumentError, match=r"view 1 of image 3 is not stored in .*views 0\.\.1 of images 0\.\.2"):
            reader.read(samples([(0, 0), (1, IMAGES)]))
        with pytest.raises(ArgumentError, match=f"view {VIEWS} of image 0"):
            reader.read(samples([(VIEWS, 0)]))
        with pytest.raises(ArgumentError, match="view -1 of image 0"):
            reader.read(samples([(-1, 0)]))
        with pytest.raises(ShapeError, match=r"expected \(N, 2\), \(view, index\) of each image, got \(2,\)"):
            reader.read(torch.tensor([0, 1]))
        with pytest.raises(DtypeError, match=r"expected an int64 tensor \(N, 2\).*got torch.float32"):
            reader.read(torch.zeros(1, 2))
        with pytest.raises(DtypeError, match="got list"):
            reader.read([[0, 1]])
        with pytest.raises(
            ArgumentError, match=r"has no tap 'logit'; did you mean 'logits'\?; it has: encoder\.layer4"
        ):
            reader.read(samples(), ["logit"])

    def test_a_file_of_another_set(self, copy, tmp_path):
        make_set(tmp_path / "other", key=CacheKey({"teacher": "other"}))
        shutil.copy(tmp_path / "other" / f"rank000-00000{SUFFIX}", copy / f"rank000-00000{SUFFIX}")
        with pytest.raises(
            CacheError, match=r"rank000-00000\.maps: damaged: its first bytes are not those of this set"
        ):
            MapReader(copy, KEY)

    def test_a_file_of_another_build(self, copy, tmp_path):
        with writer(tmp_path / "other") as made:
            for pair in PAIRS[:4]:
                made.write(*pair, maps_of(*pair), fingerprint=7)
        other = tmp_path / "other" / f"rank000-00000{SUFFIX}"
        assert other.stat().st_size == (copy / other.name).stat().st_size
        shutil.copy(other, copy / other.name)
        with pytest.raises(CacheError, match=r"rank000-00000\.maps: not the file that set\.json names"):
            MapReader(copy, KEY)


def damage_found(folder: Path) -> str:
    """The words for the damage; empty where none is found."""
    try:
        with MapReader(folder, KEY) as reader:
            return "\n".join(reader.verify())
    except CacheError as error:
        return str(error)


class TestDamage:
    def test_one_changed_byte_anywhere_is_found(self, copy):
        generator = random.Random(0)
        for path in sorted(path for path in copy.iterdir() if path.stat().st_size):
            sound = path.read_bytes()
            ends = [0, 1, 14, 20, 47, 48, *range(len(sound) - 60, len(sound))]
            for at in [*ends, *generator.sample(range(len(sound)), 40)]:
                changed = bytearray(sound)
                changed[at] ^= generator.randrange(1, 256)
                path.write_bytes(changed)
                assert path.name in damage_found(copy), f"{path.name}: byte {at}"
            path.write_bytes(sound)
        assert damage_found(copy) == ""

    @pytest.mark.parametrize("keep", [0, 30, -1])
    def test_a_cut_or_longer_file_is_found(self, copy, keep):
        for path in sorted(path for path in copy.iterdir() if path.stat().st_size):
            sound = path.read_bytes()
            for data in (sound[:keep], sound + b"\0"):
                path.write_bytes(data)
                assert path.name in damage_found(copy)
            path.write_bytes(sound)

    def test_a_read_finds_what_it_touches_and_names_it(self, copy):
        path = copy / f"rank000-00000{SUFFIX}"
        data = bytearray(path.read_bytes())
        place = MapReader(copy, KEY)._segments[0].index[2]["maps"][0]
        data[int(place["offset"]) + 5] ^= 1
        path.write_bytes(data)
        reader = MapReader(copy, KEY)
        expect(reader.read(samples(PAIRS[:2])), PAIRS[:2])
        words = (
            r"rank000-00000\.maps: damaged: the checksum of view 0 of image 2 does not fit; remove this file and make"
        )
        with pytest.raises(CacheError, match=words):
            reader.read(samples())
        assert len(reader.verify()) == 1

    def test_a_damaged_file_stops_a_builder_too(self, copy):
        path = copy / f"rank000-00000{SUFFIX}"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CacheError, match=r"rank000-00000\.maps: damaged.*remove this file"):
            writer(copy)
        assert not is_building(copy)
