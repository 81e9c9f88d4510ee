"""What lies in a bundle, and how it is read, checked, signed and written. Internal; needs NumPy only."""
