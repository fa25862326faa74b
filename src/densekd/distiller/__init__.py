"""The distiller: one module that runs student and teacher and adds up the distillation terms."""

from __future__ import annotations

from densekd.distiller.distiller import Distiller as Distiller
from densekd.distiller.output import DistillOutput as DistillOutput
from densekd.distiller.output import TermValues as TermValues
from densekd.distiller.plan import TermPlan as TermPlan
from densekd.distiller.term import Term as Term
from densekd.distiller.trainer import ForTrainer as ForTrainer
