"""Examples; not part of the wheel."""
