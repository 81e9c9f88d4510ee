"""Loads registered versions: the native loader, the handle that reloads, and pyfunc."""
