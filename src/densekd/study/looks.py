"""A distilled student beside the student alone: the images where distillation changed most, and the maps of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from densekd import files
from densekd.config import Recipe, load_recipe
from densekd.errors import CheckpointError, DensekdError, RunError
from densekd.failures import explained
from densekd.looks.choice import changed_most
from densekd.looks.records import BESIDE, FOLDER, ImagesFile, PicturesFile, ScoredImages, besides
from densekd.records import STUDENT_ALONE
from densekd.runs import Run
from densekd.runs.assemble import Parts, assemble, build_distiller
from densekd.runs.look_maps import MapLooks
from densekd.runs.look_pictures import Answering, answering_teacher, looked_at, picture_files, teacher_again

_SAME = ("data", "task", "evaluation")
_TITLES = {"alone": "student alone", "distilled": "distilled student"}

Watch = Callable[[int, int], None]


def first_pair(runs: Mapping[str, Mapping[int, Run]]) -> tuple[Run, Run] | None:
    """The student alone and a distilled one: of the first seed that both have finished, the first method with one.

    Args:
        runs: finished ones by method and seed, `none` among them.
    """
    alone = runs.get(STUDENT_ALONE, {})
    for method, made in runs.items():
        shared = [seed for seed in alone if method != STUDENT_ALONE and seed in made]
        if shared:
            return alone[shared[0]], made[shared[0]]
    return None


def pair_among(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Of finished runs the first of one network trained alone and distilled, of the same seed where there is one.

    A run of another network, the teacher's own for instance, is nobody's student alone.
    """
    done = [(run, network) for run in runs if run.record.status == "done" and (network := _network(run)) is not None]
    pairs = [
        (alone, distilled)
        for alone, one in done
        for distilled, other in done
        if alone.record.method == STUDENT_ALONE != distilled.record.method and one == other
    ]
    return min(pairs, key=lambda pair: pair[0].record.seed != pair[1].record.seed, default=None)


def _network(run: Run) -> tuple[object, object] | None:
    try:
        student = run.recipe.student
    except DensekdError:
        return None  # its page says that the recipe cannot be read
    return student.model, student.options


def keep_first_beside(runs: Mapping[str, Mapping[int, Run]], watch: Watch) -> list[str]:
    """`keep_beside` of the first pair; lines for the user."""
    pair = first_pair(runs)
    return [] if pair is None else keep_beside(*pair, watch)


def keep_beside(alone: Run, distilled: Run, watch: Watch) -> list[str]:
    """Write a folder under `looks/beside` of the distilled run, unless one is there for these very students.

    There is one for each recipe of a student alone: two studies that share a distilled run keep one each.

    Images are chosen by their own mIoU under the best evaluation of each run, whose students are the ones that ship.

    Returns:
        Lines for the user: why nothing, or not all, could be shown. Nothing is raised.
    """
    try:
        return _keep(alone, distilled, watch)
    except Exception as error:
        known = explained(error)
        words = " ".join((str(known) if known is not None else f"{type(error).__name__}: {error}").split())
        return [f"looks: no pictures of {alone.path.name} beside {distilled.path.name}: {words[:300]}"]


def _keep(alone: Run, distilled: Run, watch: Watch) -> list[str]:
    spec = distilled.recipe.report
    if not spec.images and not spec.channels:
        return []
    pair = {"alone": alone, "distilled": distilled}
    of = {key: (files.as_text(run.path.absolute().name), files.sha256_file(run.weights)) for key, run in pair.items()}
    if any(_is_there(folder, {key: digest for key, (_, digest) in of.items()}) for folder in besides(distilled.path)):
        return []
    scores = [_best(run) for run in (alone, distilled)]
    parts = _opened(distilled)
    own = _parts_of_alone(alone, distilled.recipe, parts)
    notes: list[str] = []
    digest = distilled.record.teacher
    teacher = teacher_again(parts, "" if digest is None else digest.sha256)
    networks = {"alone": own.student, "distilled": parts.student}
    with looked_at(*networks.values(), teacher):
        content = _pictures(parts, own, teacher, scores, of, notes, watch) if spec.images else {}
        if spec.channels:
            content |= _maps(parts, networks, teacher, watch)
    key = alone.record.recipe_sha256 or of["alone"][1]
    files.write_folder(distilled.path / FOLDER / BESIDE / key[:16], content)
    return notes


def _is_there(target: Path, weights: Mapping[str, str]) -> bool:
    if not (target / "pictures.json").is_file():
        return False
    try:
        return PicturesFile.model_validate(files.read_json(target / "pictures.json")).weights == dict(weights)
    except (CheckpointError, ValueError):
        return False  # of another version, or damaged: it is made anew


def _best(run: Run) -> ScoredImages:
    """The images of the evaluation that chose the run's student.

    Raises:
        RunError: the run did not keep them.
    """
    path = run.path / FOLDER / "images.json"
    found = ImagesFile.model_validate(files.read_json(path)).best if path.is_file() else None
    if found is None:
        raise RunError(f"{run.path}: keeps no scores of single images; an earlier version of densekd made it")
    return found


def _opened(run: Run) -> Parts:
    """Data, task and best student of a run."""
    recipe = load_recipe(run.path / "recipe.yaml", {"student": run.student_spec.model_dump(mode="json")})
    run.require_trust(recipe.teacher)  # whose pictures are drawn, too
    parts = assemble(recipe, training=False, taught=False)
    parts.student.eval()
    return parts


def _parts_of_alone(alone: Run, recipe: Recipe, parts: Parts) -> Parts:
    """The student alone with the data that it was scored on.

    Raises:
        RunError: its images or classes are other ones than those of the distilled run.
    """
    for name in _SAME:
        if getattr(alone.recipe, name) != getattr(recipe, name):
            raise RunError(f"{alone.path}: was scored in another way: its `{name}` differs")
    own = _opened(alone)
    if [own.data.val.name_of(place) for place in range(len(own.data.val))] != [
        parts.data.val.name_of(place) for place in range(len(parts.data.val))
    ]:
        raise RunError(f"{alone.path}: was scored on other images")
    return own


def _pictures(
    parts: Parts,
    own: Parts,
    teacher: nn.Module,
    scores: Iterable[ScoredImages],
    of: Mapping[str, tuple[str, str]],
    notes: list[str],
    watch: Watch,
) -> dict[str, bytes]:
    networks = {
        "alone": Answering(own, own.student, _TITLES["alone"]),
        "distilled": Answering(parts, parts.student, _TITLES["distilled"]),
    }
    answers = answering_teacher(parts, teacher)
    if answers is None:
        notes.append("the teacher gives features, not classes: it has no answer to show")
    else:
        networks = {"teacher": answers, **networks}
    before, after = ([image.miou for image in one.images] for one in scores)
    choice = changed_most(before, after, parts.recipe.report.images, ("the student alone", "distillation"))
    whose = f"the student alone is that of {of['alone'][0]}, the distilled one that of {of['distilled'][0]}"
    rule = f"{choice.rule}; {whose}; of each run the student of the best evaluation, which ships"
    return picture_files(parts, replace(choice, rule=rule), networks, list(notes), watch, of)


def _maps(parts: Parts, networks: Mapping[str, nn.Module], teacher: nn.Module, watch: Watch) -> dict[str, bytes]:
    """The terms whose channels are compared as they are: the student alone has no adapter."""
    distiller = build_distiller(parts, teacher)
    try:
        maps = MapLooks(parts, distiller, parts.recipe.terms)
        maps.drop_adapted("the student alone has no adapter: no channel of its map stands for one of the teacher's")
        if maps.terms:
            for key, network in networks.items():
                maps.add(key, network, teacher, watch)
        return maps.files(parts.recipe.report.channels, {"teacher": "teacher", **_TITLES})
    finally:
        distiller.close()
