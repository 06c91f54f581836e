"""Budget: an e-mail before the month gets too expensive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

WARN_PERCENT = 80


@dataclass(frozen=True, slots=True)
class BudgetAlarmArgs:
    """Arguments of BudgetAlarm."""

    monthly_usd: int
    email: str
    tags: Mapping[str, str]


class BudgetAlarm(pulumi.ComponentResource):
    """The account's monthly costs: an e-mail at 80 % spent, and when the forecast passes the limit.

    The whole account, not the stack's tag: a tag counts only after somebody activated it for billing.
    """

    def __init__(self, name: str, args: BudgetAlarmArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:BudgetAlarm", name, None, opts)
        aws.budgets.Budget(
            name,
            aws.budgets.BudgetArgs(
                budget_type="COST",
                limit_amount=str(args.monthly_usd),
                limit_unit="USD",
                time_unit="MONTHLY",
                notifications=[
                    aws.budgets.BudgetNotificationArgs(
                        comparison_operator="GREATER_THAN",
                        notification_type=kind,
                        threshold=threshold,
                        threshold_type="PERCENTAGE",
                        subscriber_email_addresses=[args.email],
                    )
                    for kind, threshold in (("ACTUAL", WARN_PERCENT), ("FORECASTED", 100))
                ],
                tags={**args.tags, "Name": name},
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})
