"""Trains a hierarchical network, or a small student of one, and writes its checkpoint (contract 1)."""
