"""The model that a service answers with, and what each answer entails: counts and the prediction log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from health_predict.adapters.archives import content_digest
from health_predict.adapters.storage import open_storage
from health_predict.core.data.contract import Contract
from health_predict.serving.metrics import Metrics
from health_predict.serving.prediction_log import PredictionLog
from health_predict.serving.schemas import Explanation, Prediction
from health_predict.serving.scorer import Scorer
from health_predict.serving.shipping import Shipper
from health_predict.settings import Settings

logger = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024


class Predictor:
    """The model of the Bento whose `src` folder is `folder`, once `open` has loaded and checked it."""

    def __init__(self, folder: Path, encounter: Any, settings: Settings, routes: Iterable[str]) -> None:
        """`encounter` is the model of an encounter of the Bento's contract."""
        self.metrics = Metrics(routes)
        self.contract: Contract = encounter.__contract__
        self.problem = "the model is being loaded"
        """Why nothing is scored; empty when all is well."""
        self._folder, self._encounter, self._settings = folder, encounter, settings
        self._scorer: Scorer | None = None
        self._digest = ""
        self._log: PredictionLog | None = None
        self._shipper: Shipper | None = None
        self._since = datetime.now(UTC).isoformat(timespec="seconds")

    def open(self) -> None:
        """Load the model and check its golden requests; one that fails stays out of service, and `problem` says why."""
        try:
            self._scorer = Scorer(self._folder, self._encounter, self._settings.serving_threads)
            self._digest = content_digest(self._folder.parent)
            self._scorer.check()
            self._open_log()
        except Exception as error:  # onnxruntime's have no base of their own
            self.problem = f"the model cannot be served: {error}"
            logger.error("%s", self.problem)
            return
        self.metrics.model(self._scorer.identity)
        self.problem = ""

    def _open_log(self) -> None:
        settings, metrics = self._settings, self.metrics
        if not settings.prediction_log or not settings.prediction_log_limit_mb:
            return
        folder = Path(settings.prediction_log).expanduser().absolute()
        storage = open_storage(settings.storage_uri, settings.s3_endpoint_url) if settings.storage_uri else None
        self._log = PredictionLog(
            folder,
            written=metrics.log_written.inc,
            dropped=metrics.log_dropped.inc,
            spooled=metrics.log_spool.set,
            file_seconds=settings.prediction_log_seconds,
            spool_bytes=settings.prediction_log_limit_mb * MEBIBYTE,
        )
        if storage is not None:
            self._shipper = Shipper(folder, storage, shipped=metrics.log_shipped.inc, failed=metrics.log_failures.inc)

    def close(self) -> None:
        """Finish the prediction log and ship it."""
        if self._log is not None:
            self._log.close()
        if self._shipper is not None:
            self._shipper.close()

    @property
    def scorer(self) -> Scorer:
        """The model. Raises RuntimeError before it is loaded."""
        if self._scorer is None:
            raise RuntimeError(self.problem)
        return self._scorer

    def predict(self, encounter: Any, *, log: bool) -> Prediction:
        """Score an `Encounter`."""
        prediction, unseen = self.scorer.score(encounter)
        self._record([prediction], [encounter], unseen, log=log)
        return prediction

    def predict_many(self, encounters: Sequence[Any], *, log: bool) -> list[Prediction]:
        """Score several, in order."""
        predictions, unseen = self.scorer.score_many(encounters)
        self._record(predictions, encounters, unseen, log=log)
        return predictions

    def _record(
        self, predictions: list[Prediction], encounters: Sequence[Any], unseen: Mapping[str, int], *, log: bool
    ) -> None:
        self.metrics.scored(predictions, unseen)
        if self._log is not None and log:
            self._log.extend(predictions, encounters)

    def explain(self, encounter: Any) -> Explanation:
        """What each column added to the score of an `Encounter`."""
        return self.scorer.explain(encounter)

    @property
    def explains(self) -> bool:
        """Whether the model can explain."""
        return self._scorer is not None and self._scorer.explainer is not None

    @property
    def warning(self) -> str:
        """Not empty when the model learned from nobody, or from other data than the contract's published ones."""
        source = self._scorer.identity.dataset_source if self._scorer is not None else ""
        if source == "synthetic":
            return "TRAINED ON SYNTHETIC DATA: the scores say nothing about real patients"
        published = self.contract.published
        if not source or published is None or source == published.name:
            return ""
        return f"trained on {source} data, not on the published data set"

    def health(self, *, told: bool = True) -> dict[str, Any]:
        """What `/health` tells; without `told` only whether the service is ready."""
        if not told:
            return {"ready": not self.problem}
        health: dict[str, Any] = {
            "ready": not self.problem,
            "problem": self.problem,
            "warning": self.warning,
            "since": self._since,
        }
        if self._scorer is not None:
            health |= self._scorer.identity.model_dump(mode="json") | {"bento_digest": self._digest}
        return health
