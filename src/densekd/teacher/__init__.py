"""The teacher's side: where its maps come from, and the images it wants."""

from __future__ import annotations

from densekd.teacher.images import TeacherImages as TeacherImages
from densekd.teacher.images import TeacherInput as TeacherInput
from densekd.teacher.live import LiveTeacher as LiveTeacher
from densekd.teacher.live import freeze as freeze
from densekd.teacher.source import Batch as Batch
from densekd.teacher.source import TeacherSource as TeacherSource
