"""From encounters to a model: features, families, search, evaluation, calibration, contributions."""
