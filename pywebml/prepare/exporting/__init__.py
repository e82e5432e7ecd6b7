"""Exporters by kind of model: each module here has its architectures as rows of data, and what makes parts of them."""
