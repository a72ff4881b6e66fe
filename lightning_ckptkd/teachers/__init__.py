"""Teachers: which snapshots teach, the frozen ensemble that they become, and how it runs fast."""

from lightning_ckptkd.teachers.calibration import calibrate, check_acceleration
from lightning_ckptkd.teachers.choice import choose_teachers
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath

__all__ = ["TeacherEnsemble", "TeacherPath", "calibrate", "check_acceleration", "choose_teachers"]
