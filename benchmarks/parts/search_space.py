"""What every contender of `benchmarks/search.py` searches: these families, from this seed."""

NAMES = ("LogisticRegression", "RandomForest", "XGBoost")
SEED = 17
