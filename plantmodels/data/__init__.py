"""Leaf folders and non-plant images (contract 2): listed, digested, sampled and decoded as streams."""
