"""`pulumi up --policy-pack pulumi/policy`."""

from pulumi_policy import EnforcementLevel, PolicyPack
from rules import POLICIES

PolicyPack("health-predict", POLICIES, enforcement_level=EnforcementLevel.MANDATORY)
