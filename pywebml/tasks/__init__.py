"""One file per task; importing this package registers them all."""

from pywebml.tasks import feature_extraction
from pywebml.tasks.base import Task, TaskContext, TaskDefinition, get_task, task, task_names

__all__ = ["Task", "TaskContext", "TaskDefinition", "feature_extraction", "get_task", "task", "task_names"]
