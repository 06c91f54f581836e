"""Schedule: the host starts and stops by the clock of a time zone, daylight saving included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from health_predict.aws.stack_config import Schedule
from infra.identity import trust_policy


@dataclass(frozen=True, slots=True)
class OfficeHoursArgs:
    """Arguments of OfficeHours."""

    schedule: Schedule
    instance_id: pulumi.Input[str]
    instance_arn: pulumi.Input[str]
    partition: str
    account_id: str
    tags: Mapping[str, str]


class OfficeHours(pulumi.ComponentResource):
    """Two EventBridge schedules, and the role by which they start and stop this one instance."""

    def __init__(self, name: str, args: OfficeHoursArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:OfficeHours", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)
        role = aws.iam.Role(
            f"{name}-scheduler",
            aws.iam.RoleArgs(
                assume_role_policy=trust_policy("scheduler.amazonaws.com", args.account_id),
                tags={**args.tags, "Name": f"{name}-scheduler"},
            ),
            opts=inside,
        )
        allowed = aws.iam.RolePolicy(
            f"{name}-scheduler",
            aws.iam.RolePolicyArgs(
                role=role.id, policy=pulumi.Output.from_input(args.instance_arn).apply(power_policy)
            ),
            opts=inside,
        )
        for verb, clock in (("start", args.schedule.start), ("stop", args.schedule.stop)):
            aws.scheduler.Schedule(
                f"{name}-{verb}",
                aws.scheduler.ScheduleArgs(
                    description=f"{verb} the health-predict host",
                    schedule_expression=cron(clock, args.schedule.days),
                    schedule_expression_timezone=args.schedule.timezone,
                    flexible_time_window=aws.scheduler.ScheduleFlexibleTimeWindowArgs(mode="OFF"),
                    target=aws.scheduler.ScheduleTargetArgs(
                        arn=f"arn:{args.partition}:scheduler:::aws-sdk:ec2:{verb}Instances",
                        role_arn=role.arn,
                        input=pulumi.Output.json_dumps({"InstanceIds": [args.instance_id]}),
                        retry_policy=aws.scheduler.ScheduleTargetRetryPolicyArgs(
                            maximum_retry_attempts=10, maximum_event_age_in_seconds=3600
                        ),
                    ),
                ),
                opts=pulumi.ResourceOptions(parent=self, depends_on=[allowed]),
            )
        self.register_outputs({})


def cron(clock: str, days: tuple[str, ...]) -> str:
    """EventBridge's cron expression for a time of day on some days of the week."""
    hour, minute = clock.split(":")
    return f"cron({int(minute)} {int(hour)} ? * {','.join(days)} *)"


def power_policy(instance_arn: str) -> str:
    """Start and stop one instance."""
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "Power",
                    "Effect": "Allow",
                    "Action": ["ec2:StartInstances", "ec2:StopInstances"],
                    "Resource": instance_arn,
                }
            ],
        }
    )
