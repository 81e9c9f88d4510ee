"""Checkpoint to bundle: torch, timm, onnx and scipy live here."""
