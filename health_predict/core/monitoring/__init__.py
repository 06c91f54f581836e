"""Whether a model still fits: input drift, performance, a refitted model, and what follows."""
