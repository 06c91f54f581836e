"""Encounters in files and in storage: raw data, datasets, batches."""
