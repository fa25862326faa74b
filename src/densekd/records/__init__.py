"""What runs, studies and benchmarks leave behind, as validated values (schema 1).

Numbers of accuracy are fractions from 0 to 1; seconds, bytes and floating-point operations are what they say.
"""

from __future__ import annotations

from densekd.records.base import dump as dump
from densekd.records.bench import BenchCase as BenchCase
from densekd.records.bench import BenchRecord as BenchRecord
from densekd.records.confusion import ConfusionRecord as ConfusionRecord
from densekd.records.confusion import Counts as Counts
from densekd.records.run import BestScores as BestScores
from densekd.records.run import CacheRecord as CacheRecord
from densekd.records.run import Cost as Cost
from densekd.records.run import ImageList as ImageList
from densekd.records.run import LeftOutRecord as LeftOutRecord
from densekd.records.run import MapError as MapError
from densekd.records.run import NetworkCost as NetworkCost
from densekd.records.run import RunRecord as RunRecord
from densekd.records.run import Scores as Scores
from densekd.records.run import Status as Status
from densekd.records.run import TeacherCost as TeacherCost
from densekd.records.run import TrackerRecord as TrackerRecord
from densekd.records.study import STUDENT_ALONE as STUDENT_ALONE
from densekd.records.study import Budget as Budget
from densekd.records.study import Gain as Gain
from densekd.records.study import PlannedMethod as PlannedMethod
from densekd.records.study import PlannedTeacher as PlannedTeacher
from densekd.records.study import StudyCost as StudyCost
from densekd.records.study import StudyFailure as StudyFailure
from densekd.records.study import StudyMethod as StudyMethod
from densekd.records.study import StudyPlan as StudyPlan
from densekd.records.study import StudyRecord as StudyRecord
from densekd.records.study import StudyScores as StudyScores
from densekd.records.study import StudyTeacher as StudyTeacher
from densekd.records.study import read_run_name as read_run_name
from densekd.records.study import run_name as run_name
from densekd.records.surroundings import commit as commit
from densekd.records.surroundings import environment as environment
