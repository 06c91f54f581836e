"""Readmission within 30 days of diabetic in-patients: the whole life of one model."""
