"""Training: the trainer on the host, the executor on the device, files in between."""

from xpnn.train.callbacks import Callback
from xpnn.train.executor import Executor
from xpnn.train.trainer import Trainer

__all__ = ["Callback", "Executor", "Trainer"]
