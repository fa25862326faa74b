"""Pages written: of a run, of a study, of several runs."""

from __future__ import annotations

import os
from pathlib import Path

from densekd import files
from densekd.errors import DtypeError, RunError, no_folder
from densekd.records import RunRecord, StudyRecord
from densekd.report.kept import RUN, STUDY, read_run, read_study
from densekd.report.page import GENERATOR, Page, rendered
from densekd.report.run_page import run_page
from densekd.report.runs_page import runs_page
from densekd.report.study_page import study_page

REPORT = "report.html"


def write_report(folder: Path, record: RunRecord | None = None) -> Path:
    """Write `report.html` into a run's folder from what the folder holds, and return its path.

    Args:
        folder: the run's.
        record: its record, where it was read already.

    Raises:
        RunError: the folder holds no run.
    """
    return _written(folder / REPORT, run_page(read_run(folder, record)))


def write_study_report(folder: Path, record: StudyRecord | None = None) -> Path:
    """Write `report.html` into a study's folder from its record and its runs, and return its path.

    Raises:
        RunError: the folder holds no study.
    """
    return _written(folder / REPORT, study_page(folder, record or read_study(folder)))


def write_page(*folders: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, of a study, or of several runs side by side.

    The page is one HTML file with everything in it: it asks no network and needs no other file.

    Args:
        folders: of one run or one study, or of two or more runs.
        out: the file; default `report.html` in the folder, of several runs `report.html` in the working directory.

    Returns:
        The page's path.

    Raises:
        RunError: a folder holds neither a run nor a study, a study is not alone, a run comes twice, or the file is
            there and is no page of densekd's.
        DtypeError: no paths.
    """
    if not folders or not all(isinstance(folder, str | os.PathLike) for folder in folders):
        raise DtypeError(f"report: expected folders of runs or of one study, got {folders!r}")
    paths = [Path(folder) for folder in folders]
    kinds = [_kind(path) for path in paths]
    if len(paths) > 1 and STUDY in kinds:
        study = paths[kinds.index(STUDY)]
        raise RunError(f"{study}: a study; its page is of the study alone. Beside each other are shown runs only")
    default = (paths[0] if len(paths) == 1 else Path()) / REPORT
    target = default if out is None else Path(out)
    _require_free(target)
    return _written(target, _page(paths, kinds[0]))


def _page(paths: list[Path], kind: str) -> Page:
    if kind == STUDY:
        return study_page(paths[0], read_study(paths[0]))
    if len(paths) == 1:
        return run_page(read_run(paths[0]))
    whole = [path.absolute() for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for place, path in enumerate(whole) if path in whole[:place])
        raise RunError(f"{twice}: named twice; expected different runs")
    shared = Path(os.path.commonpath(whole))
    names = [path.name for path in whole]
    if len(set(names)) < len(names):
        names = [path.relative_to(shared).as_posix() for path in whole]
    return runs_page({name: read_run(path) for name, path in zip(names, paths, strict=True)}, shared)


def _kind(path: Path) -> str:
    if (path / RUN).is_file():
        return RUN
    if (path / STUDY).is_file():
        return STUDY
    what = f"holds neither {RUN} nor {STUDY}" if path.is_dir() else no_folder(path)
    raise RunError(
        f"{path}: {what}; expected the folder of a run (densekd train, distill) or of a study (compare, demo)"
    )


def _require_free(target: Path) -> None:
    """Refuse to overwrite what is no page."""
    if target.is_dir():
        raise RunError(f"{target}: a folder; expected the name of a file, for instance {target / REPORT}")
    if target.is_file() and GENERATOR not in target.read_bytes()[:4000].decode("utf-8", "replace"):
        raise RunError(f"{target}: is there and is no page that densekd wrote; choose another --out")


def _written(path: Path, page: Page) -> Path:
    files.write_text(path, rendered(page))
    return path
