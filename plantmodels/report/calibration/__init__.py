"""How far the probabilities that are served can be trusted: what is measured, and how it is counted from image rows."""
