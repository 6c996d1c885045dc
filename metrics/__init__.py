"""Metrics of generative models: features in, numbers out, and all that lies on the way.

A metric is a function in `metrics/measures/` under the decorator of `metrics/registry.py`.
"""

from dnnlib.errors import UserError


class MetricError(UserError):
    """A metric cannot be measured; the message is one line that says why and what to do."""
