"""Looking at networks before they are distilled: modules, good taps, maps, and two of them beside each other."""

from __future__ import annotations

from densekd.inspection.good import Good as Good
from densekd.inspection.subject import Subject as Subject
from densekd.inspection.subject import open_subject as open_subject
from densekd.inspection.tree import Inspection as Inspection
from densekd.inspection.tree import inspect as inspect
