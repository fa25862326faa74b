"""Results as one file to upload: the same bytes for the same results."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

from densekd import files

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold


def write_archive(path: Path, folder: Path) -> None:
    """All files below `folder` in a zip, or in a tar where `path` ends with `.tgz`; written whole.

    A zip holds their paths below the folder, a tar those that begin with the folder's own name, as VOC's server wants.
    """
    entries = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    stream = io.BytesIO()
    if path.suffix == ".tgz":
        with (
            gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for entry in entries:
                data = entry.read_bytes()
                info = tarfile.TarInfo(entry.relative_to(folder.parent).as_posix())
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(stream, "w") as packed_zip:  # PNGs are packed already
            for entry in entries:
                packed_zip.writestr(zipfile.ZipInfo(entry.relative_to(folder).as_posix(), _EPOCH), entry.read_bytes())
    files.write_bytes(path, stream.getvalue())
