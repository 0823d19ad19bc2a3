"""Training: objectives, algorithms, the loop, checkpoints and reports.

``run(config, workdir)`` runs a whole training; its parts can be imported separately.
"""

from jaxeff.config import base_config
from jaxeff.train.algorithms import ALGORITHMS, BPTT, FPTT, Task, TruncatedBPTT
from jaxeff.train.experiment import Experiment, build
from jaxeff.train.fptt_optimizer import dynamic_regularizer
from jaxeff.train.launch import run
from jaxeff.train.objectives import OBJECTIVES
from jaxeff.train.optim import OPTIMIZERS
from jaxeff.train.parallel import DeviceMap
from jaxeff.train.selective_objectives import DeepGamblers, OneSided, SelectiveNet, SelfAdaptive
from jaxeff.train.state import TrainState

__all__ = [
    "ALGORITHMS",
    "BPTT",
    "FPTT",
    "OBJECTIVES",
    "OPTIMIZERS",
    "DeepGamblers",
    "DeviceMap",
    "Experiment",
    "OneSided",
    "SelectiveNet",
    "SelfAdaptive",
    "Task",
    "TrainState",
    "TruncatedBPTT",
    "base_config",
    "build",
    "dynamic_regularizer",
    "run",
]
