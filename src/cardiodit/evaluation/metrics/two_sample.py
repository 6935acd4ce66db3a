"""The classifier two-sample test (Lopez-Paz and Oquab 2017): can a classifier tell samples from real volumes?

The classifier is a kernel ridge regression on the features, and its AUC is that of leave-pair-out cross-validation
(Airola et al. 2011): for every pair of a real and a synthetic volume, a classifier that has seen neither ranks both.
Leaving out single volumes instead would bias the AUC of equal distributions below 0.5.
"""

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import norm

from cardiodit.evaluation.metrics.estimate import LEVEL, Estimate, checked_features
from cardiodit.evaluation.metrics.registry import DISTRIBUTION, LOWER, SHARE, Features, Result, metric

FEWEST = 8  # volumes of each kind
MOST = 500  # volumes of each kind that are used, since the time grows with the third power
RIDGE = 1.0  # beside a kernel whose mean diagonal is 1
BANDWIDTH = 0.2  # of the median squared distance


@metric(
    "c2st_auc",
    "AUC of a classifier of real against synthetic",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=6,
    label="Classifier two-sample test",
    bounds=SHARE,
)
def c2st_metric(features: Features) -> Result:
    estimate = c2st_auc(features.real, features.synthetic)
    return features.beside_floor(estimate, lambda real, synthetic: c2st_auc(real, synthetic).value)


def c2st_auc(real: np.ndarray, synthetic: np.ndarray) -> Estimate:
    """Return the share of pairs that a classifier ranks correctly: 0.5 if it cannot tell, 1 if it always can.

    The interval is DeLong's over both kinds of volumes; it does not contain that other training volumes would have
    made another classifier.
    """
    real, synthetic = checked_features(real, synthetic, FEWEST)
    notes: tuple[str, ...] = ("0.5 is chance; values below it are chance too.",)
    if max(len(real), len(synthetic)) > MOST:
        real, synthetic = (_evenly(rows) for rows in (real, synthetic))
        notes += (f"Computed on {len(real)} real and {len(synthetic)} synthetic volumes.",)
    is_right = _ranks_correctly(real.astype(np.float64), synthetic.astype(np.float64))
    auc = float(is_right.mean())
    by_real, by_synthetic = is_right.mean(axis=1), is_right.mean(axis=0)
    spread = np.sqrt(by_real.var(ddof=1) / len(real) + by_synthetic.var(ddof=1) / len(synthetic))
    reach = float(norm.ppf((1 + LEVEL) / 2) * spread)
    return Estimate(
        auc,
        max(0.0, auc - reach),
        min(1.0, auc + reach),
        method=(
            "kernel ridge regression on standardised features, leave-pair-out cross-validation; interval by DeLong's "
            "variance, without that of training the classifier on other volumes"
        ),
        notes=notes,
    )


def _evenly(rows: np.ndarray) -> np.ndarray:
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)
    return rows[np.lexsort(rows.T[::-1])][places]


def _centred(kernel: np.ndarray) -> np.ndarray:
    """Subtract the mean in the kernel's space, so that differences in spread are seen as well; mean diagonal 1."""
    rows = kernel.mean(axis=0)
    centred = kernel - rows[None] - rows[:, None] + rows.mean()
    return centred * (len(kernel) / np.trace(centred))


def _ranks_correctly(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Return `(n, m)`: 1 where the classifier without this pair scores the real volume higher, 0.5 where equal."""
    n, m = len(real), len(synthetic)
    pooled = np.concatenate([real, synthetic])
    spread = pooled.std(axis=0)
    pooled = pooled[:, spread > 0] / spread[spread > 0]
    distances = pdist(pooled, "sqeuclidean") if pooled.shape[1] else np.zeros(0)
    if not (distances > 0).any():
        return np.full((n, m), 0.5)
    kernel = _centred(np.exp(-squareform(distances) / (BANDWIDTH * np.median(distances[distances > 0]))))
    labels = np.concatenate([np.full(n, m / (n + m)), np.full(m, -n / (n + m))])
    inverse = np.linalg.inv(kernel + RIDGE * np.eye(n + m))
    weights = inverse @ labels
    # Without the volumes i and j, their predictions are labels − C⁻¹ · weights, where C is their block of the inverse.
    own = np.diag(inverse)
    a, d, b = own[:n, None], own[None, n:], inverse[:n, n:]
    determinant = a * d - b * b
    of_real = labels[:n, None] - (d * weights[:n, None] - b * weights[None, n:]) / determinant
    of_synthetic = labels[None, n:] - (a * weights[None, n:] - b * weights[:n, None]) / determinant
    apart = of_real - of_synthetic
    return np.where(np.abs(apart) < 1e-12, 0.5, (apart > 0).astype(np.float64))
