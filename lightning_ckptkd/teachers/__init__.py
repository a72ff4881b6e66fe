"""Teachers: which snapshots teach, and the frozen ensemble that they become."""

from lightning_ckptkd.teachers.choice import choose_teachers
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble

__all__ = ["TeacherEnsemble", "choose_teachers"]
