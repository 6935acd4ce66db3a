"""Compare the Fréchet distance of 2048 features with the usual computation, SciPy's matrix square root.

python benchmarks/frechet.py
"""

import argparse

import numpy as np
from measuring import interleaved, machine
from scipy.linalg import sqrtm

from cardiodit.evaluation.metrics.frechet import frechet_distance

FEATURES = 2048
MAX_RATIO = 1.05  # of SciPy's time


def scipy_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    first, second = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    means = np.square(real.mean(axis=0) - synthetic.mean(axis=0)).sum()
    return float(means + np.trace(first + second) - 2 * np.trace(sqrtm(first @ second)).real)


def compare(volumes: int, rounds: int) -> None:
    rng = np.random.default_rng(volumes)
    spread = 1 / np.sqrt(np.arange(1, FEATURES + 1))
    real, synthetic = (rng.normal(size=(volumes, FEATURES)) * spread for _ in range(2))
    ours, theirs = frechet_distance(real, synthetic), scipy_distance(real, synthetic)
    seconds = interleaved(
        {
            "ours": lambda: frechet_distance(real, synthetic),
            "sqrtm": lambda: scipy_distance(real, synthetic),
        },
        rounds,
    )
    ratio = seconds["ours"] / seconds["sqrtm"]
    print(
        f"{volumes} volumes per set, {FEATURES} features: ours {seconds['ours']:.3f} s, SciPy's sqrtm "
        f"{seconds['sqrtm']:.2f} s, ratio {ratio:.4f} (at most {MAX_RATIO}); distances {ours:.6f} and {theirs:.6f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, nargs="+", default=[100, 3000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    for volumes in arguments.volumes:
        compare(volumes, arguments.rounds)


if __name__ == "__main__":
    main()
