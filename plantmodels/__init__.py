"""Turns a trained hierarchical plant classifier into one verified, servable bundle.

`docs/architecture.md` says what each room holds and which rooms it may import. Nothing in this package imports MLflow:
that is the job of `mlflow_plugins`.
"""

__version__ = "0.2.0"
