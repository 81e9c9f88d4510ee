"""Checks before the long work of an export: do names, preprocessing and non-plants fit the network?"""
