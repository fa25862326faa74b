"""Channel-wise knowledge distillation for dense prediction.

Names are loaded when first used (PEP 562): `import densekd` loads neither torch nor any other large library, nor any of
the standard one: until it is done, the command line answers no signal.
"""

from __future__ import annotations

from densekd._version import __version__

TYPE_CHECKING = False  # type checkers take the name for true, wherever it comes from
if TYPE_CHECKING:
    from typing import Any

    from densekd import functional as functional
    from densekd import losses as losses
    from densekd.distiller import Distiller as Distiller
    from densekd.distiller import DistillOutput as DistillOutput
    from densekd.distiller import ForTrainer as ForTrainer
    from densekd.distiller import Term as Term
    from densekd.doctor import Report as Report
    from densekd.doctor import preflight as preflight
    from densekd.export import Exported as Exported
    from densekd.export import Int8Options as Int8Options
    from densekd.export import export_run as export_run
    from densekd.export import load_exported as load_exported
    from densekd.runs import Run as Run
    from densekd.runs import distill as distill
    from densekd.runs import train as train
    from densekd.study import Study as Study
    from densekd.study import compare as compare
    from densekd.teacher import FrozenTeacher as FrozenTeacher
    from densekd.teacher import TeacherInput as TeacherInput
    from densekd.teacher import TeacherSource as TeacherSource
    from densekd.teacher import freeze_teacher as freeze_teacher
    from densekd.tuning import Tuned as Tuned
    from densekd.tuning import tune as tune

# public name -> module that defines it; a module stands for itself
_NAMES = {
    "DistillOutput": "densekd.distiller",
    "Distiller": "densekd.distiller",
    "ForTrainer": "densekd.distiller",
    "Exported": "densekd.export",
    "FrozenTeacher": "densekd.teacher",
    "Int8Options": "densekd.export",
    "Report": "densekd.doctor",
    "Run": "densekd.runs",
    "Study": "densekd.study",
    "TeacherInput": "densekd.teacher",
    "TeacherSource": "densekd.teacher",
    "Term": "densekd.distiller",
    "Tuned": "densekd.tuning",
    "compare": "densekd.study",
    "distill": "densekd.runs",
    "export_run": "densekd.export",
    "freeze_teacher": "densekd.teacher",
    "functional": "densekd.functional",
    "load_exported": "densekd.export",
    "losses": "densekd.losses",
    "preflight": "densekd.doctor",
    "train": "densekd.runs",
    "tune": "densekd.tuning",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    try:
        target = _NAMES[name]
    except KeyError:
        raise AttributeError(f"module 'densekd' has no attribute {name!r}") from None
    import importlib

    module = importlib.import_module(target)
    return module if target == f"densekd.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
