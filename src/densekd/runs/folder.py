"""The folder of a run: made, guarded against overwriting, opened again."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from densekd import files
from densekd.config import Recipe, dump_recipe, load_recipe, recipe_digest
from densekd.errors import ConfigError, DtypeError, RunError, no_folder
from densekd.models.build import build_model
from densekd.models.specs import CheckpointSpec, ModelSpec
from densekd.records import RunRecord
from densekd.report import write_report
from densekd.runs.origin import FILE as ORIGIN
from densekd.runs.origin import code_of, made_here, note_origin

_KEPT = {"log.csv", "evaluations.csv", "confusion.json", "checkpoints", "student.safetensors", "looks", "tracking"}
_OWN = {"recipe.yaml", "record.json", *_KEPT, "report.html", "replay", ORIGIN}


class Run:
    """A finished, interrupted or running training, by its folder.

    Attributes:
        path: of the folder.
        trust: whether code that its recipe names is executed though the folder was not made here.
    """

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self.path, self.trust = path, trust

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False) -> Run:
        """Open a run folder.

        Args:
            path: of the folder.
            trust: execute the file of a network of the user's own (`net.py:build`), though this folder is a copy or
                came from somebody else. A run that was made here needs it not.

        Raises:
            RunError: the folder is missing or holds no `record.json`.
            DtypeError: no path.

        >>> Run.load("no-such-folder")
        Traceback (most recent call last):
            ...
        densekd.errors.RunError: no-such-folder: no such folder. Runs are made by `densekd train` and `densekd distill`
        """
        if not isinstance(path, str | os.PathLike):
            raise DtypeError(f"Run.load: expected the path of a run folder, got {path!r}")
        folder = Path(path)
        if not (folder / "record.json").is_file():
            what = "holds no record.json: it is no run" if folder.is_dir() else no_folder(folder)
            raise RunError(f"{folder}: {what}. Runs are made by `densekd train` and `densekd distill`")
        return cls(folder, trust=trust)

    @property
    def record(self) -> RunRecord:
        """The run's `record.json`, read now.

        Raises:
            RunError: it is not a record of schema 1.
        """
        try:
            return RunRecord.model_validate(files.read_json(self.path / "record.json"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise RunError(f"{self.path / 'record.json'}: not a record of schema 1: {where}: {first['msg']}") from None

    @property
    def recipe(self) -> Recipe:
        """The run's resolved recipe.

        Raises:
            RunError, ConfigError: it is missing or not valid.
        """
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise RunError(f"{self.path}: holds no recipe.yaml")
        try:
            return load_recipe(path)
        except ConfigError as error:
            if str(path) in str(error):
                raise
            # Nobody has named a recipe here: the words about its keys alone would not tell where to look.
            raise ConfigError(f"{path}: {error}") from None

    @property
    def weights(self) -> Path:
        """`student.safetensors`, the best student alone.

        Raises:
            RunError: not there yet, or missing.
        """
        path = self.path / "student.safetensors"
        if not path.is_file():
            record = self.record
            if record.best is None:
                raise RunError(f"{path}: not there yet; the run's status is {record.status!r}")
            raise RunError(f"{path}: missing; `{resume_command(self.path, record.method)}` restores it")
        return path

    def student(self) -> nn.Module:
        """The best student, in eval mode, as a network of its own library.

        Raises:
            RunError: the run has not evaluated a student yet; or its network is code and the folder was not made here.
            ModelError, CheckpointError: its network cannot be built here, or its weights do not fit it.
        """
        recipe, scores = self.recipe, self.record.best
        if scores is None:
            raise RunError(f"{self.path}: no student was evaluated yet; the run's status is {self.record.status!r}")
        outputs = 1 if recipe.task.binary else len(scores.iou)
        return build_model(self.student_spec, outputs, notices=[]).eval()

    def report(self) -> Path:
        """Write the run's page, `report.html`, from what its folder holds; returns its path."""
        return write_report(self.path, self.record)

    @property
    def student_spec(self) -> ModelSpec:
        """The best student as a part of a recipe: the recipe's network with `student.safetensors` as its weights.

        Raises:
            RunError: there are none yet; or its network is code and the folder was not made here.
        """
        weights, recipe = CheckpointSpec(path=str(self.weights.absolute())), self.recipe
        self.require_trust(recipe.student)
        return recipe.student.model_copy(update={"checkpoint": weights, "encoder_checkpoint": None})

    def require_trust(self, spec: ModelSpec | None) -> None:
        """Refuse to build a network of the run's recipe that is code, where the folder may come from a stranger.

        Args:
            spec: the network as the recipe names it; None: there is none, and nothing to refuse.

        Raises:
            RunError: it says which file would be executed, and how to allow it.
        """
        code = code_of(spec)
        if code is None or self.trust or made_here(self.path):
            return
        raise RunError(
            f"{self.path}: its recipe names code, {spec.model if spec is not None else code}, and this folder was not "
            f"made in its place: it is a copy, or came from somebody else. Opening its network executes "
            f"{Path(code).expanduser().absolute()}, which can do anything that you can. If you trust that file and the "
            "recipe, give --trust (in Python: Run.load(folder, trust=True))"
        )

    def code(self, *, teacher: bool = False) -> list[str]:
        """Lines on the files that opening the student executes.

        Args:
            teacher: also those of the teacher.
        """
        recipe = self.recipe
        asked = {"student": recipe.student, **({"teacher": recipe.teacher} if teacher else {})}
        return [
            f"{code} is executed: the recipe of {self.path} names it as its {what}"
            for what, spec in asked.items()
            if (code := code_of(spec)) is not None
        ]


def check_folder(path: Path, recipe: Recipe, method: str, *, resume: bool, force: bool) -> None:
    """Refuse a folder that cannot be used as asked; nothing is changed.

    Args:
        method: what the run will record as its method.

    Raises:
        RunError: the folder holds anything and neither `resume` nor `force` was asked; `force`, and it is no run's or
            holds other files too; `resume`, and there is no folder, something else in it than a run, or one of another
            recipe or method. An empty folder is what a kill at the very start leaves: it can be gone on with.
    """
    if resume:
        _require_same(path, recipe, method)
        return
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: a file; choose a folder with --out")
    entries = path.iterdir() if path.is_dir() else ()
    names = {entry.name for entry in entries if not files.is_temporary(entry.name)}
    if names and not force:
        raise RunError(
            f"{path}: exists; it is never overwritten unasked. Use --resume to go on with it, --force to "
            "start it again, or --out for another folder"
        )
    strange = sorted(name for name in names if name not in _OWN)
    if strange:
        raise RunError(f"{path}: holds files that are not a run's ({', '.join(strange[:5])}); --force leaves it alone")
    if names and not names & {"recipe.yaml", "record.json"}:
        raise RunError(f"{path}: holds no recipe.yaml, so it is no run; --force leaves it alone")


def require_writable(path: Path) -> None:
    """Refuse a folder in which nothing can be written, or that cannot be made; nothing is left behind.

    Raises:
        RunError: it, or the nearest folder above it that exists, takes no file.
    """
    nearest = next(above for above in (path.absolute(), *path.absolute().parents) if os.path.lexists(above))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {nearest}: {error.strerror or error}; choose another folder with --out"
        ) from None


def start_folder(path: Path, recipe: Recipe) -> None:
    """Remove an earlier run's files and begin with the resolved recipe. `check_folder` came first."""
    # A kill in between: what is left says "done" at no moment, and is a run's folder to the end.
    first, last = "record.json", "recipe.yaml"
    for name in (first, *sorted(_OWN - {first, last}), last):
        entry = path / name
        if entry.is_dir():
            files.remove_folder(entry)
        else:
            files.remove(entry)
    files.sweep_temporaries(path)
    files.write_text(path / "recipe.yaml", dump_recipe(recipe))


def begin_folder(path: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the folder ready for training: cleared and begun anew, or of what a kill left half-written."""
    if resume and (path / "recipe.yaml").is_file():
        files.sweep_temporaries(path)
    else:
        start_folder(path, recipe)
    note_origin(path, recipe)


def resume_command(path: Path, method: str) -> str:
    """The command that goes on with the run in a folder."""
    return f"densekd {'train' if method == 'none' else 'distill'} {shlex.quote(str(path))} --resume"


def _require_same(path: Path, recipe: Recipe, method: str) -> None:
    saved = path / "recipe.yaml"
    if not saved.is_file():
        if path.is_dir() and all(files.is_temporary(entry.name) for entry in path.iterdir()):
            return  # killed before it had written anything
        raise RunError(f"{path}: nothing to resume: it holds no recipe.yaml")
    begun = Run.load(path).record.method if (path / "record.json").is_file() else method
    if (begun == "none") != (method == "none"):  # two distillations differ in their recipes' terms
        how = "trained alone and cannot go on under a teacher"
        if method == "none":
            how = f"distilled ({begun}) and cannot go on without its teacher"
        raise RunError(f"{path}: this run is {how}; go on with it by `{resume_command(path, begun)}`")
    command = resume_command(path, method)
    before = load_recipe(saved)
    # Another number of loading processes learns the same, and one that they killed may need fewer.
    loading = {"workers": recipe.runtime.workers}
    before = before.model_copy(update={"runtime": before.runtime.model_copy(update=loading)})
    if recipe_digest(before) != recipe_digest(recipe):
        raise RunError(
            f"{path}: its recipe differs from the one asked for ({', '.join(differences(before, recipe))}). "
            f"A resume goes on with the same recipe, `runtime.workers` aside: `{command}`"
        )


def differences(before: Recipe, after: Recipe) -> list[str]:
    """Keys whose values differ, as `key: old -> new` (the first five)."""

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
            value = {str(place): entry for place, entry in enumerate(value)}
        if isinstance(value, dict):
            return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    old, new = flat(before.model_dump(mode="json")), flat(after.model_dump(mode="json"))
    changed = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    more = [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:5]] + more
