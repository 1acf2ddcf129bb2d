"""One thread per process: the models are tiny, and two test processes share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the scripts that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
