"""`pulumi up --policy-pack pulumi/policy`."""

from pulumi_policy import EnforcementLevel, PolicyPack
from rules import POLICIES  # type: ignore[import-not-found]  # the CLI runs this in its folder

PolicyPack("health-predict", POLICIES, enforcement_level=EnforcementLevel.MANDATORY)
