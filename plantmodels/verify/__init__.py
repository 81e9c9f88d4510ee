"""Measures a bundle on images and judges its gates (contract 5)."""
