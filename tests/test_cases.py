"""Every case on every variant of every backend."""

from xpnn.conformance.test_cases import *  # noqa: F403
