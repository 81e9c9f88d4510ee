"""A quadratic form, evaluated on the calling thread: it makes the score of the out-of-distribution detector.

>>> form = QuadraticForm.build(np.eye(2), np.zeros((1, 2)), np.array([1.0]), np.float64)
>>> form.evaluate(np.array([[3.0, 4.0]])).tolist()
[26.0]
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Scores
from plantmodels.errors import DetectorError

FLOAT32_SPREAD: Final = 1e5
"""Largest ratio of conditional variances at which float32 is exact enough. 768 features of a trained Swin have 1e4."""


def check_definite(matrix: NDArray[np.floating], name: str) -> float:
    """Return a lower bound of a matrix's condition number: how unequal the Cholesky factor's squared diagonal is.

    Raises:
        DetectorError: the matrix is not symmetric and positive definite.
    """
    halves = matrix.astype(np.float64)
    halves /= 2  # their sums cannot overflow, and the factor's diagonal has the same ratios
    if not np.array_equal(matrix, matrix.T):  # ours are equal, and then a bundle opens without the slower comparison
        if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(np.abs(matrix).max())):
            raise DetectorError(f"{name} must be symmetric")
        halves = (halves + halves.T) / 2
    try:
        diagonal = np.diagonal(np.linalg.cholesky(halves))
    except np.linalg.LinAlgError as error:
        raise DetectorError(f"{name} must be positive definite") from error
    return float((diagonal.max() / diagonal.min()) ** 2)


_BLOCK: Final = 96
"""Number of rows of a symmetric matrix in one block."""


@dataclass(frozen=True)
class QuadraticForm:
    """`min_c (x · A · x + slope_c · x + constant_c)` for a symmetric A.

    Attributes:
        blocks: the upper triangle of A in blocks of `_BLOCK` rows, with everything right of a diagonal block doubled.
            The lower triangle, nearly half of the memory traffic, is thus never read.
        slopes: (C, D).
        constants: (C,) float64.
    """

    blocks: tuple[NDArray[np.floating], ...]
    slopes: NDArray[np.floating]
    constants: NDArray[np.float64]

    @classmethod
    def build(
        cls,
        matrix: NDArray[np.float64],
        slopes: NDArray[np.float64],
        constants: NDArray[np.float64],
        dtype: type[np.float32] | type[np.float64],
    ) -> "QuadraticForm":
        """Return the form with its arrays laid out for `evaluate`."""
        blocks: list[NDArray[np.floating]] = []
        for start in range(0, len(matrix), _BLOCK):
            block = matrix[start : start + _BLOCK, start:].copy()
            block[:, _BLOCK:] *= 2
            blocks.append(block.astype(dtype))
        return cls(tuple(blocks), slopes.astype(dtype), constants)

    def evaluate(self, rows: NDArray[np.float64]) -> Scores:
        """Return the values (N,) at rows (N, D), computed on the calling thread only.

        `rows @ matrix` would wake the threads of BLAS, which then spin beside those of ONNX Runtime: a whole prediction
        took up to twice as long.
        """
        rows = rows.astype(self.slopes.dtype)
        squared = np.zeros(len(rows))
        for number, block in enumerate(self.blocks):
            right = rows[:, number * _BLOCK :]
            squared += np.einsum("nm,nm->n", right[:, :_BLOCK], np.einsum("nd,md->nm", right, block))
        linear = np.einsum("nd,cd->nc", rows, self.slopes) + self.constants
        values: Scores = squared + linear.min(axis=1)
        return values
