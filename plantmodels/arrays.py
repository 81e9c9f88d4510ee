"""Names for the arrays that functions exchange.

NumPy's types cannot state a shape, so the text below each name does. N is the number of images, S of species, C of
classes, D of numbers in an embedding, and P of pixels on each side of the network's input.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, or (N, H, W, 3)."""

Inputs = NDArray[np.float32]
"""(N, 3, P, P): resized and normalized images, which the species model reads."""

Embeddings = NDArray[np.float32]
"""(N, D): one row per image, which the disease heads and the detector read."""

Embedding = NDArray[np.float32]
"""(D,): the embedding of one image."""

Logits = NDArray[np.float32]
"""(N, S) for species, or (N, C) for diseases, with −inf at classes that a species lacks."""

Probabilities = NDArray[np.float64]
"""(N, C): rows that sum to 1."""

Scores = NDArray[np.float64]
"""(N,): out-of-distribution scores; higher means more out-of-distribution."""

Weights = NDArray[np.float32]
"""Weights or biases of a layer, of any shape."""

Labels = NDArray[np.int64]
"""(N,): class indices."""

Mask = NDArray[np.bool_]
"""(N,): true for the selected rows."""
