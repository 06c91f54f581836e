"""Data contracts that come with the library."""
