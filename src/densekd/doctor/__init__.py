"""Pre-flight: proof, on one batch, that distillation happens."""

from __future__ import annotations

from densekd.doctor.preflight import preflight as preflight
from densekd.doctor.report import Report as Report
from densekd.doctor.report import TermRow as TermRow
