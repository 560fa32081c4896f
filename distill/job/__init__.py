"""A distillation as a job that scripts submit and wait for: `from distill.job import DistillationJob`."""

from distill.job.distillation import DistillationJob, GateWord, JobFailed, JobMetrics, JobProgress, JobStatus, StudentFigures
from distill.job.tables import Hyperparameters
from distill.settings import TeacherTable

__all__ = [
    "DistillationJob",
    "GateWord",
    "Hyperparameters",
    "JobFailed",
    "JobMetrics",
    "JobProgress",
    "JobStatus",
    "StudentFigures",
    "TeacherTable",
]
