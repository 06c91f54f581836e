"""Data contracts that come with the library."""

BUILT_IN = "diabetes-130"  # of a run that names no other
