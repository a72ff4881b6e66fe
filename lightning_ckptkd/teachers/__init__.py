"""Teachers: which snapshots teach and when, the frozen ensemble that they become, and how it runs fast."""

from lightning_ckptkd.teachers.calibration import calibrate, check_acceleration
from lightning_ckptkd.teachers.choice import choose_teachers, weigh_teachers
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath
from lightning_ckptkd.teachers.schedules import Progressive, RandomTeacher, Route, TeacherSchedule

__all__ = [
    "Progressive",
    "RandomTeacher",
    "Route",
    "TeacherEnsemble",
    "TeacherPath",
    "TeacherSchedule",
    "calibrate",
    "check_acceleration",
    "choose_teachers",
    "weigh_teachers",
]
