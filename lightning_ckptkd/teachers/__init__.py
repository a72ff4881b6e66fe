"""Teachers: which snapshots teach and when, the frozen ensemble that they become, and the cache of its logits."""

from lightning_ckptkd.teachers.cache import LogitCache
from lightning_ckptkd.teachers.cache_key import CacheKey, fingerprint
from lightning_ckptkd.teachers.calibration import Acceleration, calibrate
from lightning_ckptkd.teachers.choice import choose_teachers
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath
from lightning_ckptkd.teachers.evaluation import Evaluation
from lightning_ckptkd.teachers.feature_matching import FeatureMatching
from lightning_ckptkd.teachers.filling import fill
from lightning_ckptkd.teachers.loading import load_teachers, pair_harvests
from lightning_ckptkd.teachers.mixing import CutMix, Mix, Mixup, check_cached_mix
from lightning_ckptkd.teachers.objective import KDFunction, Objective
from lightning_ckptkd.teachers.panel import TeacherPanel
from lightning_ckptkd.teachers.schedules import AllTeachers, Progressive, RandomTeacher, Route, TeacherSchedule
from lightning_ckptkd.teachers.teacher_cache import CachedBatch, TeacherCache
from lightning_ckptkd.teachers.views import CollateViews, ViewBatch, Views, ViewSample, ViewSampler, view_loader

__all__ = [
    "Acceleration",
    "AllTeachers",
    "CacheKey",
    "CachedBatch",
    "CollateViews",
    "CutMix",
    "Evaluation",
    "FeatureMatching",
    "KDFunction",
    "LogitCache",
    "Mix",
    "Mixup",
    "Objective",
    "Progressive",
    "RandomTeacher",
    "Route",
    "TeacherCache",
    "TeacherEnsemble",
    "TeacherPanel",
    "TeacherPath",
    "TeacherSchedule",
    "ViewBatch",
    "ViewSample",
    "ViewSampler",
    "Views",
    "calibrate",
    "check_cached_mix",
    "choose_teachers",
    "fill",
    "fingerprint",
    "load_teachers",
    "pair_harvests",
    "view_loader",
]
