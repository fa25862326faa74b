"""The columns of a run's tables.

`log.csv`: those that every run has; between them stand the parts of the loss, under their own names.
"""

from __future__ import annotations

BEFORE = ("step", "loss")
"""Columns before the parts of the loss."""
TIMES = ("seconds", "data_wait")
"""Columns that differ from run to run; all others are equal, bit for bit, for equal runs."""
AFTER = ("lr", "grad_norm", *TIMES)
"""Columns after the parts of the loss."""
RESERVED = (*BEFORE, *AFTER)
"""Names that no part of a loss may have."""
EVALUATIONS = ("step", "miou", "pixel_accuracy")
"""Columns of `evaluations.csv`."""
