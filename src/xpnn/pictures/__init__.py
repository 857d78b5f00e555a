"""Pictures of training, of networks and of what goes on inside them."""

from xpnn.pictures.feature_maps import feature_maps
from xpnn.pictures.report import write

__all__ = ["feature_maps", "write"]
