"""The stages as KFP components: thin, so that they run alike under SubprocessRunner, in a cluster and in tests.

A component opens a `task`, calls one stage and writes its values. Only the standard library and kfp stand at the
top of these modules, because KFP sends their bodies to places where nothing else is imported yet.
"""

from components.bento_build import bento_build
from components.drift import drift
from components.ecr_push import ecr_push
from components.hpo import hpo
from components.keep import keep
from components.recalibrate import recalibrate
from components.record_end import record_end
from components.register import register
from components.rollout import rollout
from components.settle import settle
from components.split import split

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
