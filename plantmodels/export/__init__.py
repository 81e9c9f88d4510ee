"""Checkpoint to bundle: torch, timm and onnx live here."""
