"""Making what the runtime reads: models in hub layout and mirrors of settings collections. CPython only.

Import the submodules by name: most of them need `pip install "pywebml[convert]"`.
"""
