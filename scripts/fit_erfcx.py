"""The polynomial behind the kernels' GELU: P(t) ~ erfcx(z) = e^(z²) erfc(z) for t = 1 / (1 + 0.35 z), z >= 0.

Weighted least squares on Chebyshev nodes, reweighted by the error until it is level (Lawson, 1961). Prints
the coefficients from the constant upwards, and the largest relative error. python scripts/fit_erfcx.py
"""

import mpmath
import numpy as np

RATE, DEGREE, LARGEST_Z, NUM_NODES, NUM_ROUNDS = 0.35, 10, 9.5, 400, 60


def erfcx(z: float) -> float:
    return float(mpmath.erfc(z) * mpmath.exp(mpmath.mpf(z) ** 2))


def main() -> None:
    mpmath.mp.dps = 40
    least = 1 / (1 + RATE * LARGEST_Z)
    angles = np.pi * (np.arange(NUM_NODES) + 0.5) / NUM_NODES
    t = (least + 1) / 2 + (1 - least) / 2 * np.cos(angles)
    exact = np.array([erfcx((1 / each - 1) / RATE) for each in t])
    columns = np.vander(t, DEGREE + 1, increasing=True) / exact[:, None]
    weights = np.ones(NUM_NODES)
    for _ in range(NUM_ROUNDS):
        root = np.sqrt(weights)
        coefficients, *_ = np.linalg.lstsq(columns * root[:, None], root, rcond=None)
        error = np.abs(columns @ coefficients - 1)
        weights = weights * error / np.sum(weights * error)
    print("\n".join(f"{each:.17g}" for each in coefficients))
    print(f"largest relative error {error.max():.1e}")


if __name__ == "__main__":
    main()
