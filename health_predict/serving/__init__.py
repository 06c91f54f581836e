"""What a Bento's `service.py` is made of: contract, scoring, refusals, pages, metrics, prediction log.

A Bento carries the wheel of this library and imports it from there. The base install is enough, with the libraries of
the extra `serving`: no pandas, no scikit-learn, no MLflow.
"""
