"""Several methods compared on one student under one protocol: methods x seeds, gains paired by seed."""

from densekd.study.comparison import Comparison as Comparison
from densekd.study.methods import Method as Method
from densekd.study.methods import resolve_methods as resolve_methods
from densekd.study.progress import Silent as Silent
from densekd.study.result import RunsFailedError as RunsFailedError
from densekd.study.result import Study as Study
from densekd.study.start import check_seeds as check_seeds
from densekd.study.start import compare as compare
from densekd.study.start import prepare as prepare
from densekd.study.tables import class_rows as class_rows
from densekd.study.tables import size_rows as size_rows
from densekd.study.tables import study_rows as study_rows
