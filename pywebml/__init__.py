"""An in-browser ML runtime as a Python package; the same API runs in CPython.

engine = await pywebml.create_engine(task_name="feature-extraction")
vectors = await engine.run("A sentence.", pooling="mean", normalize=True)
"""

from pywebml.abort import AbortController, AbortSignal
from pywebml.engine import Engine, RunMetrics, create_engine, get_engine, list_engines
from pywebml.hub import ModelHub, Selection, StoredModels
from pywebml.library import is_cached, plan, prefetch, stored_models
from pywebml.options import Configuration, PipelineOptions, configure
from pywebml.pipelines import AutoTokenizer, Pipeline, pipeline
from pywebml.planning import Plan
from pywebml.platform import StoreUsage, get_platform
from pywebml.progress import ProgressEvent
from pywebml.settings import RemoteSettings
from pywebml.tasks import TaskContext, task
from pywebml.tokenization import Tokenizer
from pywebml.transfer import export_models, import_models, persist_storage, storage_usage
from pywebml.version import __version__ as __version__

__all__ = [
    "AbortController",
    "AbortSignal",
    "AutoTokenizer",
    "Configuration",
    "Engine",
    "ModelHub",
    "Pipeline",
    "PipelineOptions",
    "Plan",
    "ProgressEvent",
    "RemoteSettings",
    "RunMetrics",
    "Selection",
    "StoreUsage",
    "StoredModels",
    "TaskContext",
    "Tokenizer",
    "configure",
    "create_engine",
    "export_models",
    "get_engine",
    "get_platform",
    "import_models",
    "is_cached",
    "list_engines",
    "persist_storage",
    "pipeline",
    "plan",
    "prefetch",
    "storage_usage",
    "stored_models",
    "task",
]
