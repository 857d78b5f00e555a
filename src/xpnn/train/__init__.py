"""Training: the trainer on the host, the executor on the device, files in between."""

from xpnn.train.callbacks import Callback, Checkpoint, EarlyStopping, JSONLines, TimeLimit
from xpnn.train.executor import Executor
from xpnn.train.tensorboard import TensorBoard
from xpnn.train.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Executor",
    "JSONLines",
    "TensorBoard",
    "TimeLimit",
    "Trainer",
]
