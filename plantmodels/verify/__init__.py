"""Measure a bundle on images and judge its gates (contract 5)."""
