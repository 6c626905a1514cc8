"""Few measurements move a factor little: the mean of their logarithms, drawn towards the catalog's figure.

With n samples x_i = ln(measured / predicted), each known to within `noise`, and a prior ln(factor) ~ N(0, prior^2), the
factor is exp(n / (n + k) * mean(x)), k = (noise / prior)^2: the most likely one given both.
"""

import math
import statistics
from collections.abc import Sequence

NOISE = 0.15
"""What a sample misses of the whole run, as a share: a probe's models are cut, and steps do more than their parts."""
GPU_PRIOR = 0.2
"""How far the catalog's GPUs are off: published steps lie within -13 % and +20 % of the model (intervals of the
catalog), and a site's own within some more."""
CPU_PRIOR = 0.7
"""How far its CPU cores are off: half to twice, since its figures are those of one machine."""
BOUNDS = (1e-3, 1e3)


def shrunk(ratios: Sequence[float], prior: float, noise: float = NOISE) -> float:
    """The factor for `ratios` of measured to predicted time; 1 without any.

    >>> round(shrunk([1.5], GPU_PRIOR), 3), round(shrunk([1.5] * 8, GPU_PRIOR), 3), shrunk([], GPU_PRIOR)
    (1.296, 1.46, 1.0)
    """
    if not ratios:
        return 1.0
    weight = len(ratios) / (len(ratios) + (noise / prior) ** 2)
    factor = math.exp(weight * statistics.fmean(math.log(ratio) for ratio in ratios))
    return min(max(factor, BOUNDS[0]), BOUNDS[1])
