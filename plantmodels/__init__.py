"""Turns a trained hierarchical plant classifier into one verified, servable bundle.

Rooms, from the ground up: `bundle` (what lies on disk), `serve` (images to predictions), `build`
(checkpoint to bundle) and `verify` (bundle to gate report). Imports run downwards only, and nothing in
this package imports MLflow: that is the job of `mlflow_plugins`.
"""

__version__ = "0.1.0"
