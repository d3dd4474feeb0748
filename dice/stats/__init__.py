"""Statistics of streams: moments, quantiles, thresholds, and those of a training set."""
