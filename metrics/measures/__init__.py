"""One file a family of metrics. `metrics.registry` imports all of them; adding one is enough."""
