"""Alarms: what the operator is told through one SNS topic. The host sends the metrics (pulumi/bootstrap/watch.sh).

The pipelines write to the topic, too: HEALTH_PREDICT_NOTIFY names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

NAMESPACE = "health-predict"
PERIOD = 300  # seconds between two reports of the host
DISK_PERCENT = 85


class Topic(pulumi.ComponentResource):
    """The topic, and the operator's subscription."""

    def __init__(
        self, name: str, email: str, tags: Mapping[str, str], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("health-predict:infra:Topic", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)
        self.topic = aws.sns.Topic(name, aws.sns.TopicArgs(tags={**tags, "Name": name}), opts=inside)
        if email:
            aws.sns.TopicSubscription(
                name,
                aws.sns.TopicSubscriptionArgs(topic=self.topic.arn, protocol="email", endpoint=email),
                opts=inside,
            )
        self.register_outputs({"topic_arn": self.topic.arn})


@dataclass(frozen=True, slots=True)
class AlarmsArgs:
    """Arguments of Alarms. A host that is `always_on` is missed when it reports nothing."""

    instance_id: pulumi.Input[str]
    stack: str
    topic_arn: pulumi.Input[str]
    always_on: bool
    tags: Mapping[str, str]


class Alarms(pulumi.ComponentResource):
    """The alarms, which write to the topic."""

    # Long, since it is a list: one alarm after the other.
    def __init__(self, name: str, args: AlarmsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Alarms", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)

        def alarm(  # what an alarm of CloudWatch takes
            kind: str,
            metric: str,
            description: str,
            *,
            threshold: float = 0,
            periods: int = 1,
            silence: str = "notBreaching",
            namespace: str = NAMESPACE,
            dimensions: Mapping[str, pulumi.Input[str]] | None = None,
        ) -> None:
            aws.cloudwatch.MetricAlarm(
                f"{name}-{kind}",
                aws.cloudwatch.MetricAlarmArgs(
                    alarm_description=description,
                    namespace=namespace,
                    metric_name=metric,
                    dimensions=dimensions or {"Stack": args.stack},
                    statistic="Maximum",
                    period=PERIOD,
                    evaluation_periods=periods,
                    comparison_operator="GreaterThanThreshold",
                    threshold=threshold,
                    treat_missing_data=silence,
                    alarm_actions=[args.topic_arn],
                    ok_actions=[args.topic_arn],
                    tags={**args.tags, "Name": f"{name}-{kind}"},
                ),
                opts=inside,
            )

        alarm(
            "host-down",
            "StatusCheckFailed",
            "The host does not answer AWS's checks -> see its console: `aws ec2 get-console-output --latest`",
            periods=2,
            silence="breaching" if args.always_on else "notBreaching",
            namespace="AWS/EC2",
            dimensions={"InstanceId": args.instance_id},
        )
        alarm(
            "disk-full",
            "DiskUsed",
            f"A disk of the host is over {DISK_PERCENT} % full -> `pulumi config set data_gib` (or root_gib) to more",
            threshold=DISK_PERCENT,
            silence="breaching" if args.always_on else "notBreaching",
            periods=3,
        )
        alarm(
            "backup-failed",
            "FailedBackups",
            "A backup failed -> `kubectl -n health-predict-tracking get jobs`;"
            " once corrected, `health-predict backup --on aws`",
        )
        alarm(
            "run-failed",
            "FailedRuns",
            "A run of a pipeline failed -> see the pages of Kubeflow Pipelines, http://127.0.0.1:8080 when forwarded",
        )
        self.register_outputs({})
