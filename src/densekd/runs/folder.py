"""The folder of a run: made, guarded against overwriting, opened again."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from torch import nn

from densekd import files
from densekd.config import Recipe, dump_recipe, load_recipe, recipe_digest
from densekd.errors import RunError
from densekd.models.build import build_model
from densekd.models.specs import CheckpointSpec
from densekd.records import RunRecord

_OWN = {"recipe.yaml", "record.json", "log.csv", "checkpoints", "student.safetensors", "report.html"}


class Run:
    """A finished, interrupted or running training, by its folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Open a run folder.

        Raises:
            RunError: the folder is missing or holds no `record.json`.
        """
        folder = Path(path)
        if not (folder / "record.json").is_file():
            what = "holds no record.json: it is no run" if folder.is_dir() else "no such folder"
            raise RunError(f"{folder}: {what}. Runs are made by `densekd train` and `densekd distill`")
        return cls(folder)

    @property
    def record(self) -> RunRecord:
        """The run's `record.json`, read now."""
        try:
            return RunRecord.model_validate(files.read_json(self.path / "record.json"))
        except ValidationError as error:
            raise RunError(f"{self.path / 'record.json'}: not a record of schema 1: {error}") from None

    @property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return load_recipe(self.path / "recipe.yaml")

    @property
    def weights(self) -> Path:
        """`student.safetensors`, the best student alone."""
        path = self.path / "student.safetensors"
        if not path.is_file():
            raise RunError(f"{path}: not there yet; the run's status is {self.record.status!r}")
        return path

    def student(self) -> nn.Module:
        """The best student, in eval mode, as a network of its own library.

        Raises:
            RunError: the run has not evaluated a student yet.
        """
        recipe, scores = self.recipe, self.record.best
        if scores is None:
            raise RunError(f"{self.path}: no student was evaluated yet; the run's status is {self.record.status!r}")
        outputs = 1 if recipe.task.binary else len(scores.iou)
        spec = recipe.student.model_copy(
            update={"checkpoint": CheckpointSpec(path=str(self.weights)), "encoder_checkpoint": None}
        )
        return build_model(spec, outputs, notices=[]).eval()


def open_folder(path: Path, recipe: Recipe, *, resume: bool, force: bool) -> bool:
    """Make the folder of a run, or take up an interrupted one. Returns whether there is something to resume.

    Raises:
        RunError: the folder exists and neither `resume` nor `force` was asked, or its recipe differs.
    """
    if resume:
        return _resumable(path, recipe)
    if not force:
        refuse_existing(path)
    elif path.exists():
        _clear(path)
    path.mkdir(parents=True, exist_ok=True)
    files.write_text(path / "recipe.yaml", dump_recipe(recipe))
    return False


def refuse_existing(path: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        RunError: it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(
            f"{path}: exists; it is never overwritten unasked. Use --resume to go on with it, --force to "
            "start it again, or --out for another folder"
        )


def _clear(path: Path) -> None:
    files.sweep_temporaries(path)
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in _OWN)
    if strange:
        raise RunError(f"{path}: holds files that are not a run's ({', '.join(strange[:5])}); --force leaves it alone")
    files.remove_folder(path)


def _resumable(path: Path, recipe: Recipe) -> bool:
    saved = path / "recipe.yaml"
    if not saved.is_file():
        raise RunError(f"{path}: nothing to resume: it holds no recipe.yaml")
    before = load_recipe(saved)
    if recipe_digest(before) != recipe_digest(recipe):
        raise RunError(
            f"{path}: its recipe differs from the one asked for ({', '.join(differences(before, recipe))}). "
            f"A resume goes on with the same recipe: `densekd distill {saved} --out {path} --resume`"
        )
    return True


def differences(before: Recipe, after: Recipe) -> list[str]:
    """Keys whose values differ, as `key: old -> new` (the first five)."""

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if isinstance(value, dict):
            return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    old, new = flat(before.model_dump(mode="json")), flat(after.model_dump(mode="json"))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:5]]

