"""Names for the arrays that functions exchange; each says what a row is, and its dtype.

numpy's types cannot state a shape, so the comment below each name does: N images, S species, C classes, D numbers of
an embedding, P pixels a side.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, or (N, H, W, 3)."""

Inputs = NDArray[np.float32]
"""(N, 3, P, P): images, resized and normalized; what the species model reads."""

Embeddings = NDArray[np.float32]
"""(N, D): one row an image; what the disease heads and the detector read."""

Embedding = NDArray[np.float32]
"""(D,): the embedding of one image."""

Logits = NDArray[np.float32]
"""(N, S) of species, or (N, C) of diseases; −inf at classes that a species lacks."""

Probabilities = NDArray[np.float64]
"""(N, C): rows that sum to 1."""

Scores = NDArray[np.float64]
"""(N,): out-of-distribution scores; higher means more out-of-distribution."""

Labels = NDArray[np.int64]
"""(N,): class indices."""

Mask = NDArray[np.bool_]
"""(N,): which rows."""
