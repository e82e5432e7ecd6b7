"""Which files a model consists of, and what its `config.json` says."""

from pywebml.models.config import ModelConfig
from pywebml.models.files import DEFAULT_DTYPE, DTYPE_SUFFIXES, ModelModule, model_modules

__all__ = ["DEFAULT_DTYPE", "DTYPE_SUFFIXES", "ModelConfig", "ModelModule", "model_modules"]
