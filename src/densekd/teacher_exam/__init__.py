"""The teacher's exam: its score on a few validation images, and the name of what is wrong with it."""

from densekd.teacher_exam.assignment import best_assignment as best_assignment
from densekd.teacher_exam.conventions import Convention as Convention
from densekd.teacher_exam.exam import Exam as Exam
from densekd.teacher_exam.exam import examine_teacher as examine_teacher
from densekd.teacher_exam.reading import Reading as Reading
from densekd.teacher_exam.reading import read as read
