"""Outputs: what the operator pastes next."""

from __future__ import annotations

from typing import Any

from health_predict.aws import cost
from health_predict.aws.stack_config import OpenPort, StackConfig

KUBERNETES_PORT = 6443
FORWARDED = {OpenPort.API.value: OpenPort.API.number, "mlflow": 5050, "pipelines": 8080}
# Minutes. Docs tell what they were measured on, and what of them is estimated.
FIRST_UP = 45
LATER_UP = 20


def commands(config: StackConfig, instance_id: str) -> dict[str, str]:
    """Commands by what they do. All go through Systems Manager: no port of the host is open for them."""
    target = f"aws ssm start-session --region {config.region} --target {instance_id}"
    forward = (
        f"{target} --document-name AWS-StartPortForwardingSession --parameters portNumber={{0}},localPortNumber={{0}}"
    )
    show = f"{target} --document-name AWS-StartNonInteractiveCommand --parameters"
    return {
        "session": target,
        "kubeconfig": f"{show} command='sudo cat /root/.kube/config' | sed -n '/^apiVersion/,/^users/p;/^- name/,/^$/p'"
        " > kubeconfig",
        "kubernetes": forward.format(KUBERNETES_PORT),
        "state": f"{show} command='cat /var/lib/health-predict/state'",
        **{name: forward.format(port) for name, port in FORWARDED.items()},
        "delete": "pulumi config set keep_data false && pulumi up && pulumi destroy"
        if config.keep_data
        else "pulumi destroy",
    }


def estimate(config: StackConfig) -> str:
    """What `pulumi up` will take, said before it starts."""
    first = " and with training" if config.first_run else ""
    return (
        f"the first `pulumi up` takes about {FIRST_UP} minutes, with images{first}; a later one up to {LATER_UP}, or "
        f"seconds where the host has nothing to do. The stack costs about {stack_estimate(config).usd:.0f} USD a month "
        f"(list prices of {cost.PRICES_AS_OF})"
    )


def monthly_cost(config: StackConfig) -> dict[str, Any]:
    """The estimate that `health-predict cost` prints, with its parts."""
    estimate = stack_estimate(config)
    return {
        "usd": round(estimate.usd, 2),
        "prices_as_of": cost.PRICES_AS_OF,
        "parts": {part.name: f"{part.usd:.2f} ({part.basis})" for part in estimate.parts},
    }


def stack_estimate(config: StackConfig) -> cost.MonthlyCost:
    """Estimate of the stack as configured."""
    hours = config.schedule.hours_a_week if config.schedule else None
    return cost.host(config.region, config.instance_type, config.root_gib, config.data_gib, hours)
