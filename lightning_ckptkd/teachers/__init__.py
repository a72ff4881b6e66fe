"""Teachers: which snapshots teach and when, the frozen ensemble that they become, and the cache of its logits."""

from lightning_ckptkd.teachers.cache import LogitCache
from lightning_ckptkd.teachers.cache_key import CacheKey, fingerprint
from lightning_ckptkd.teachers.calibration import calibrate, check_acceleration
from lightning_ckptkd.teachers.choice import choose_teachers
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath
from lightning_ckptkd.teachers.feature_matching import FeatureMatching
from lightning_ckptkd.teachers.filling import fill
from lightning_ckptkd.teachers.loading import load_teachers, pair_harvests
from lightning_ckptkd.teachers.mixing import CutMix, Mixup
from lightning_ckptkd.teachers.schedules import Progressive, RandomTeacher, Route, TeacherSchedule
from lightning_ckptkd.teachers.teacher_cache import TeacherCache
from lightning_ckptkd.teachers.views import CollateViews, ViewBatch, Views, ViewSample, ViewSampler, view_loader

__all__ = [
    "CacheKey",
    "CollateViews",
    "CutMix",
    "FeatureMatching",
    "LogitCache",
    "Mixup",
    "Progressive",
    "RandomTeacher",
    "Route",
    "TeacherCache",
    "TeacherEnsemble",
    "TeacherPath",
    "TeacherSchedule",
    "ViewBatch",
    "ViewSample",
    "ViewSampler",
    "Views",
    "calibrate",
    "check_acceleration",
    "choose_teachers",
    "fill",
    "fingerprint",
    "load_teachers",
    "pair_harvests",
    "view_loader",
]
