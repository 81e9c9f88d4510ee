"""Leaf folders and non-plant images (contract 2): list them, digest them, sample them and decode them as streams."""
