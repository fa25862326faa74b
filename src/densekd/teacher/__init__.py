"""The teacher's side: where its maps come from, and the images it wants."""

from __future__ import annotations

from densekd.teacher.engine_report import EngineReport as EngineReport
from densekd.teacher.freezing import freeze_teacher as freeze_teacher
from densekd.teacher.frozen import FrozenTeacher as FrozenTeacher
from densekd.teacher.images import TeacherImages as TeacherImages
from densekd.teacher.images import TeacherInput as TeacherInput
from densekd.teacher.live import LiveTeacher as LiveTeacher
from densekd.teacher.live import freeze as freeze
from densekd.teacher.source import Batch as Batch
from densekd.teacher.source import TeacherSource as TeacherSource
from densekd.teacher.source import as_batch as as_batch
from densekd.teacher.specs import EngineSpec as EngineSpec
