"""What a share may be after some of n trials failed, however often one looks before one stops asking: pure.

A bound for a fixed number of trials is wrong for somebody who asks until it fits. These hold at every number of trials at once: by Ville's
inequality the likelihood ratio of a mixture of shares over the true one exceeds 1/doubt at any time with a probability of at most `doubt`.
A share whose ratio does is ruled out. (Robbins, Statistical methods related to the law of the iterated logarithm, 1970.)
"""

from __future__ import annotations

import math
from functools import lru_cache

# Weight, a and b of the beta distributions that are mixed: mostly around 1 %, so that what budgets are about is told apart soonest.
_MIXTURE = ((0.8, 0.5, 50.0), (0.2, 0.5, 0.5))
_HALVINGS = 40


@lru_cache(maxsize=4096)
def at_most(n_trials: int, n_failed: int, doubt: float) -> float:
    """Return the share that is not exceeded but with a probability of `doubt`."""
    return _border(n_trials, n_failed, doubt, 1.0)


@lru_cache(maxsize=4096)
def at_least(n_trials: int, n_failed: int, doubt: float) -> float:
    """Return the share that is reached but with a probability of `doubt`."""
    return _border(n_trials, n_failed, doubt, 0.0)


def _border(n_trials: int, n_failed: int, doubt: float, outside: float) -> float:
    """Return where, between what was seen and `outside`, shares begin to be ruled out; `outside` where none is."""
    inside, most = n_failed / n_trials if n_trials else 0.5, -math.log(doubt)
    if inside == outside:
        return outside
    for _ in range(_HALVINGS):
        share = (inside + outside) / 2
        inside, outside = (inside, share) if _log_ratio(n_trials, n_failed, share) >= most else (share, outside)
    return outside


def _log_ratio(n: int, k: int, share: float) -> float:
    """Return the logarithm of the likelihood ratio of the mixture over a share within 0 and 1, both excluded."""
    parts = [math.log(weight) + _log_beta(a + k, b + n - k) - _log_beta(a, b) for weight, a, b in _MIXTURE]
    mixture = max(parts) + math.log1p(math.exp(min(parts) - max(parts)))
    return mixture - k * math.log(share) - (n - k) * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
