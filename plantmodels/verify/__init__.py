"""Bundle and data to a gate report: parity, accuracy, rejection, integrity, sizes, latency (contract 5)."""
