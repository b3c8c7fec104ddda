"""One product of cuBLAS, which CuPy brings, by addresses: CuPy's own way there takes longer than a small product."""

from __future__ import annotations

from typing import Any

import numpy as np

AS_IT_IS, TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def product(cuda: Any, A: int, lda: int, B: int, ldb: int, C: int, ldc: int, M: int, N: int, K: int) -> None:
    """C (M,N) = A (M,K) B^T, B (N,K), on CuPy's current device and in its current stream; float32, no TF32.

    `cuda` is cupy.cuda; A, B and C are addresses in the device's memory, lda, ldb and ldc elements a row apart.
    """
    # cuBLAS counts by columns: what are rows here are columns there, where C is B A^T.
    cuda.cublas.sgemm(
        cuda.device.get_cublas_handle(), TRANSPOSED, AS_IT_IS, N, M, K,
        ONE.ctypes.data, B, ldb, A, lda, ZERO.ctypes.data, C, ldc,
    )  # fmt: skip
