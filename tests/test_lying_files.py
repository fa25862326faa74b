"""Files that declare what they do not hold: sizes without end, parts twice, more packed than anybody has memory for."""

from __future__ import annotations

import collections
import io
import json
import pickle
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from densekd.data.benchmarks import matlab
from densekd.data.benchmarks.matlab import unpacked
from densekd.data.benchmarks.sbd import segmentation_of
from densekd.errors import CheckpointError, DataError
from densekd.models.checkpoint import load_checkpoint
from densekd.models.checkpoint_file import read_checkpoint
from densekd.models.specs import CheckpointSpec

WEIGHT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_ROOM = 400 * 2**20
"""Bytes that reading one of these files may take on top of what is there."""


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No more memory than there is and some: what makes room for what a file declares fails here."""
    begun = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, begun[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, begun)


def safetensors(header: Any, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (safetensors({"w": WEIGHT}, 2**60), "header too large"),
        (safetensors({"w": WEIGHT, "v": WEIGHT}), "invalid offset"),
        (safetensors(f'{{"w": {json.dumps(WEIGHT)}, "w": {json.dumps(WEIGHT)}}}'.encode()), "'w' is in it twice"),
        (safetensors({"w": {**WEIGHT, "shape": [2**40, 2**40]}}), "overflow"),
        (safetensors({"w": {**WEIGHT, "shape": [2**30], "data_offsets": [0, 2**32]}}), "not fully covered"),
        (safetensors({"w": {**WEIGHT, "shape": [-2]}}), "invalid"),
        (safetensors({"w": {**WEIGHT, "dtype": "OBJECT"}}), "unknown variant"),
        (safetensors(b'{"a":' * 100_000), "recursion limit"),
    ],
)
def test_safetensors(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"/w: not a readable safetensors file \(.*{words}"):
        read_checkpoint(tmp_path / "w")


class _Storage:
    """Stands for the storage of a tensor in a pickle."""


def pickled(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], *more: Any) -> bytes:
    """The pickle of a state dict with one tensor of a storage that claims `numel` floats."""
    storage, stream = _Storage(), io.BytesIO()

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            plain = (storage, 0, shape, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, plain  # type: ignore[attr-defined]

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel, *more) if value is storage else None

    Pickler(stream, 2).dump({"weight": Tensor()})
    return stream.getvalue()


def torch_zip(path: Path, pickle_: bytes, data: bytes = bytes(8), packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in (("data.pkl", pickle_), ("version", b"3\n"), ("byteorder", b"little"), ("data/0", data)):
            archive.writestr(f"archive/{name}", content)
    return path


def torch_older(path: Path, numel: int) -> Path:
    """What torch.save wrote before 1.6, claiming `numel` floats and holding two."""
    sizes = {"short": 2, "int": 4, "long": 4}
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes})
    parts = [pickle.dumps(one, 2) for one in head]
    parts += [pickled(numel, (numel,), (1,), None), pickle.dumps(["0"], 2), struct.pack("<q", numel), bytes(8)]
    path.write_bytes(b"".join(parts))
    return path


class TestTorch:
    def test_what_is_made_here_is_as_torch_writes_it(self, tmp_path: Path) -> None:
        for path in (torch_zip(tmp_path / "a", pickled(2, (2,), (1,))), torch_older(tmp_path / "b", 2)):
            assert torch.equal(read_checkpoint(path)["weight"], torch.zeros(2))

    @pytest.mark.parametrize("numel", [2**30, 2**40, 2**62])
    def test_storages_without_end(self, tmp_path: Path, numel: int) -> None:
        for path in (torch_zip(tmp_path / "a", pickled(numel, (numel,), (1,))), torch_older(tmp_path / "b", numel)):
            with pytest.raises(CheckpointError, match="damaged or cut short"):
                read_checkpoint(path)

    def test_a_view_of_more_than_its_storage(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            read_checkpoint(torch_zip(tmp_path / "a", pickled(2, (2**30,), (1,))))

    def test_one_value_that_says_it_is_a_trillion(self, tmp_path: Path) -> None:
        torch_zip(tmp_path / "a", pickled(1, (2**40,), (0,)), bytes(4))
        with pytest.raises(CheckpointError, match=r"weight.*1099511627776"):
            load_checkpoint(nn.PReLU(), CheckpointSpec(path=str(tmp_path / "a")), tmp_path)

    def test_more_packed_than_the_file_has(self, tmp_path: Path) -> None:
        count = 2**22
        path = torch_zip(tmp_path / "a", pickled(count, (count,), (1,)), bytes(4 * count), zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 20_000
        with pytest.raises(
            CheckpointError, match=r"its parts would take 16,7.. ?.*, more than the file has: it is packed"
        ):
            read_checkpoint(path)

    def test_one_part_under_many_names(self, tmp_path: Path) -> None:
        path = torch_zip(tmp_path / "a", pickled(2**10, (2**10,), (1,)), bytes(2**12))
        with zipfile.ZipFile(path, "a") as archive:
            part = archive.getinfo("archive/data/0")
            for number in range(1, 9):
                same = zipfile.ZipInfo(f"archive/data/{number}")
                same.header_offset, same.CRC = part.header_offset, part.CRC
                same.file_size = same.compress_size = part.file_size
                archive.filelist.append(same)
            archive._didModify = True  # type: ignore[attr-defined]  # so that the list is written anew
        with pytest.raises(CheckpointError, match="its parts would take"):
            read_checkpoint(path)

    @pytest.mark.parametrize("code", [b"X" + struct.pack("<I", 2**32 - 1), b"\x8e" + struct.pack("<Q", 2**60)])
    def test_texts_without_end_in_the_pickle(self, tmp_path: Path, code: bytes) -> None:
        with pytest.raises(CheckpointError, match=r"damaged|densekd never does"):
            read_checkpoint(torch_zip(tmp_path / "a", b"\x80\x02" + code + b"abc."))


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], content: bytes, name: bytes = b"") -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    inner = flags + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name) + content
    return struct.pack("<II", 14, len(inner)) + inner


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)
MASK = array(9, (3, 4), element(2, IDS.tobytes("F")))


def sbd(field: bytes) -> bytes:
    names = element(5, struct.pack("<i", 32)) + element(1, b"Segmentation".ljust(32, b"\0"))
    return array(2, (1, 1), names + field, b"GTcls")


def mat(path: Path, *parts: bytes, packed: bool = False) -> Path:
    wrapped = [struct.pack("<II", 15, len(z)) + z for part in parts if (z := zlib.compress(part, 9))]
    path.write_bytes(HEAD + b"".join(wrapped if packed else parts))
    return path


class TestMatlab:
    @pytest.mark.slow
    @pytest.mark.parametrize("packed", [False, True])
    def test_a_sound_file(self, tmp_path: Path, packed: bool) -> None:
        pytest.importorskip("scipy")
        path = mat(tmp_path / "a.mat", array(1, (1, 2), MASK + MASK, b"more"), sbd(MASK), packed=packed)
        np.testing.assert_array_equal(segmentation_of(path), IDS)

    @pytest.mark.slow
    def test_what_scipy_writes_goes_through_unchanged(self, tmp_path: Path) -> None:
        savemat = pytest.importorskip("scipy.io").savemat
        cells = np.array([IDS, "text", 1.5, np.zeros((0, 3))], dtype=object)
        content = {"GTcls": {"Segmentation": IDS, "Boundaries": cells, "name": "ä", "on": True}, "x": np.eye(3)}
        savemat(tmp_path / "a.mat", content)
        assert unpacked(tmp_path / "a.mat").getvalue() == (tmp_path / "a.mat").read_bytes()
        savemat(tmp_path / "b.mat", content, do_compression=True)
        np.testing.assert_array_equal(segmentation_of(tmp_path / "b.mat"), IDS)

    @pytest.mark.parametrize(
        ("field", "words"),
        [
            (array(1, (30_000, 30_000), b""), "30000x30000 entries in"),
            (array(1, (2**31 - 1, 1), b""), "2147483647x1 entries in"),
            (array(2, (2**30, 1), element(5, b"\x20\0\0\0") + element(1, bytes(32))), "1073741824x1 entries"),
            (array(3, (2**30, 1), b""), "1073741824x1 entries"),
            (array(17, (2**30, 1), b""), "1073741824x1 entries"),
            (array(9, (-1, 4), element(2, bytes(16))), "an array of -1x4"),
            (array(9, (65536, 65535), struct.pack("<II", 2, 65536 * 65535) + bytes(16)), None),
            (MASK[:-40], "of which .* are there"),
        ],
    )
    def test_sizes_that_are_not_held(self, tmp_path: Path, field: bytes, words: str | None) -> None:
        path = mat(tmp_path / "a.mat", sbd(field))
        if words is None:  # scipy makes room for what is there alone
            pytest.importorskip("scipy")
            words = "cannot be read as a mask of SBD"
        with pytest.raises(DataError, match=rf"a\.mat: .*{words}"):
            segmentation_of(path)

    def test_nested_without_end(self, tmp_path: Path) -> None:
        nested = MASK
        for _ in range(200):
            nested = array(1, (1, 1), nested)
        with pytest.raises(DataError, match="nested more than 32 deep"):
            unpacked(mat(tmp_path / "a.mat", sbd(nested)))

    def test_more_packed_than_a_mask_takes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(matlab, "MOST_BYTES", 100_000)
        path = mat(tmp_path / "a.mat", *2 * [element(2, bytes(60_000))], packed=True)
        with pytest.raises(DataError, match="packed in it are more than 100,000 bytes"):
            unpacked(path)
        path.write_bytes(bytes(100_001))
        with pytest.raises(DataError, match="100,001 bytes; a mask takes less"):
            unpacked(path)

    @pytest.mark.parametrize(
        "content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(300), b"\x80\x02.", HEAD[:-2] + b"??", HEAD[:124] + b"\0\2IM"]
    )
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(DataError, match="no file of MATLAB's version 5"):
            unpacked(tmp_path / "a.mat")

    def test_damaged_packing(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mat"
        path.write_bytes(HEAD + struct.pack("<II", 15, 20) + b"no zlib at all......")
        with pytest.raises(DataError, match="damaged, or made to mislead"):
            unpacked(path)
        with pytest.raises(DataError, match="no regular one"):
            unpacked(tmp_path)
