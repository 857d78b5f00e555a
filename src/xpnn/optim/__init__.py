"""Optimizers, and schedules of their learning rate."""

from xpnn.optim.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from xpnn.optim.schedules import Constant, Cosine, OneCycle, OnPlateau, Progress, Schedule, Step, WarmUp

OPTIMIZERS: dict[str, type[Optimizer]] = {cls.__name__: cls for cls in (SGD, RMSprop, Adam, AdamW)}
SCHEDULES: dict[str, type[Schedule]] = {
    cls.__name__: cls for cls in (Constant, Step, Cosine, WarmUp, OneCycle, OnPlateau)
}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "OnPlateau",
    "OneCycle",
    "Optimizer",
    "Progress",
    "RMSprop",
    "Schedule",
    "Step",
    "WarmUp",
]
