"""The prediction service of one Bento: contract, scoring, HTTP, metrics, prediction log.

Inside a Bento this package also holds copies of the core modules that it imports (`health_predict.adapters.bentoml`
makes them), so that a Bento does not depend on the release of health-predict that happens to be installed beside it.
"""
