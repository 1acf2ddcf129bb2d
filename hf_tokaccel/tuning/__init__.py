"""Choosing a setting: in closed form from a configuration, or by a search on unlabelled images."""

from .api import tune
from .result import Trial, TuneResult

__all__ = ["Trial", "TuneResult", "tune"]
