"""Figures that TinyTrain prints (Kwon et al., ICML 2024), as data: what our tables are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

NETWORKS = ("mcunet", "mobilenet_v2", "proxyless_nas")
METHODS = ("FullTrain", "LastLayer", "TinyTL", "SparseUpdate", "TinyTrain")


class Cost(NamedTuple):
    """Memory in MB = 2^20 bytes and multiply-accumulates in millions, of the backward pass."""

    memory_mb: float
    macs_m: float


TABLE_2: Mapping[str, Mapping[str, Cost]] = {
    "mcunet": {
        "FullTrain": Cost(906, 44.9),
        "LastLayer": Cost(2.03, 1.57),
        "TinyTL": Cost(542, 26.4),
        "SparseUpdate": Cost(1.43, 11.9),
        "TinyTrain": Cost(0.89, 6.51),
    },
    "mobilenet_v2": {
        "FullTrain": Cost(1049, 34.9),
        "LastLayer": Cost(1.64, 0.80),
        "TinyTL": Cost(587, 16.4),
        "SparseUpdate": Cost(2.08, 8.10),
        "TinyTrain": Cost(1.06, 4.90),
    },
    "proxyless_nas": {
        "FullTrain": Cost(857, 38.4),
        "LastLayer": Cost(1.06, 0.59),
        "TinyTL": Cost(541, 17.8),
        "SparseUpdate": Cost(1.74, 7.60),
        "TinyTrain": Cost(0.78, 5.00),
    },
}
"""Memory and compute of the backward pass; FullTrain and TinyTL at batch 100, the others at batch 1."""

TABLE_7: Mapping[str, Mapping[str, float]] = {
    "LastLayer": {
        "weights": 0.35,
        "adam": 1.05,
        "sgd": 0.35,
        "activations": 0.63,
        "adam total": 2.03,
        "sgd total": 1.33,
    },
    "SparseUpdate": {
        "weights": 0.20,
        "adam": 0.60,
        "activations": 0.63,
        "adam total": 1.43,
        "sgd total": 1.03,
    },
    "TinyTrain": {
        "weights": 0.07,
        "adam": 0.20,
        "sgd": 0.07,
        "activations": 0.63,
        "adam total": 0.89,
        "sgd total": 0.76,
    },
}
"""MCUNet's memory in MB by part; "adam" and "sgd" are gradient and states beside the weights."""

TABLE_11: Mapping[str, tuple[float, ...]] = {
    "mcunet": (479.0, 392.3, 281.0, 191.6, 135.9, 80.3),
    "mobilenet_v2": (432.9, 325.7, 218.4, 148.5, 101.6, 54.7),
    "proxyless_nas": (299.3, 241.5, 171.6, 118.0, 89.1, 60.3),
}
"""Saved activations in KB = 2^10 bytes of a Fisher pass over the last 6, 5, …, 1 blocks."""

BATCH = 100
"""Batch size of FullTrain and TinyTL in Table 2."""
