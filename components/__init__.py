"""The stages as KFP components: thin, so that they run alike under SubprocessRunner, in a cluster and in tests.

A component opens a `task`, calls one stage and writes its values. Only the standard library and kfp stand at the
top of these modules, because KFP sends their bodies to places where nothing else is imported yet.
"""

from health_predict.components.bento_build import bento_build
from health_predict.components.drift import drift
from health_predict.components.ecr_push import ecr_push
from health_predict.components.hpo import hpo
from health_predict.components.keep import keep
from health_predict.components.recalibrate import recalibrate
from health_predict.components.record_end import record_end
from health_predict.components.register import register
from health_predict.components.rollout import rollout
from health_predict.components.settle import settle
from health_predict.components.split import split

__all__ = [
    "bento_build",
    "drift",
    "ecr_push",
    "hpo",
    "keep",
    "recalibrate",
    "record_end",
    "register",
    "rollout",
    "settle",
    "split",
]
