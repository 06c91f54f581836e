"""How a task is wired to the place it runs in: settings, secrets, resources. One place for all tasks.

In a cluster the settings come from a ConfigMap, credentials and the addresses of messages from Secrets; under
SubprocessRunner they are ignored and the task inherits the environment of the command.
"""

from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from health_predict.settings import PREFIX, Settings

SETTINGS = "health-predict-settings"
CREDENTIALS = "health-predict-credentials"
NOTIFY = "health-predict-notify"  # the addresses of who is told hold secrets
# The token of the account that may roll out. A run has one account for all its tasks, and kfp-kubernetes gives a task
# none of its own, so this comes as a Secret.
ROLLOUT = "health-predict-rollout"
# On AWS the credentials are those of the tasks' own role. They last an hour, and lie in files that are read anew; which
# ones, the variable says, which only AWS' settings have (k8s/overlays/aws/settings.env).
AWS, AWS_FOLDER, AWS_VARIABLE = "health-predict-aws", "/var/run/secrets/health-predict/aws", "AWS_CONFIG_FILE"
# A token of an operator of the endpoint, of which `k8s/up` tells the settings.
TOKEN, TOKEN_FOLDER = "readmission-api-token", "/run/readmission-api"
# The key that signs images, and those that are trusted; where they lie, the settings say (docs/security.md).
SIGNING, TRUSTED, KEYS_FOLDER = "health-predict-signing", "health-predict-trusted-keys", "/run/health-predict-keys"
CREDENTIAL_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


def wire(
    task: PipelineTask,
    display_name: str,
    cpu: str = "200m",
    memory: str = "512Mi",
    minutes: int = 30,
    retries: int = 2,
) -> PipelineTask:
    """Give a task its environment, requests, limits of time and attempts, and its name.

    No caching, since the stages know what is done. Repeating is safe, since every stage is idempotent; what a gate
    refused would only be refused again, so a rollout has no second attempt.
    """
    addresses = f"{PREFIX}NOTIFY"
    names = [PREFIX + name.upper() for name in Settings.model_fields]
    from_settings = [AWS_VARIABLE, *(name for name in names if name != addresses)]
    kubernetes.use_config_map_as_env(task, SETTINGS, {name: name for name in from_settings}, optional=True)
    kubernetes.use_secret_as_env(task, NOTIFY, {addresses: addresses}, optional=True)
    kubernetes.use_secret_as_env(task, CREDENTIALS, {name: name for name in CREDENTIAL_NAMES}, optional=True)
    kubernetes.use_secret_as_volume(task, AWS, mount_path=AWS_FOLDER, optional=True)
    task.set_cpu_request(cpu)
    task.set_memory_request(memory)
    kubernetes.set_timeout(task, minutes * 60)
    # Every node has it, whatever the tag says: images are named by digest.
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if retries:
        task.set_retry(retries, backoff_duration="20s", backoff_factor=2.0, backoff_max_duration="300s")
    task.set_caching_options(False)
    task.set_display_name(display_name)
    return task


def may_roll_out(task: PipelineTask) -> PipelineTask:
    """Give a task, by its token, the account that may change what serves (k8s/base/rbac.yaml)."""
    folder = Settings.model_fields["kube_account"].default
    return kubernetes.use_secret_as_volume(task, ROLLOUT, mount_path=folder, optional=True)


def with_token(task: PipelineTask) -> PipelineTask:
    """Give a task the endpoint's token, as a file that follows a rotation."""
    return kubernetes.use_secret_as_volume(task, secret_name=TOKEN, mount_path=TOKEN_FOLDER, optional=True)


def with_signing_key(task: PipelineTask) -> PipelineTask:
    """Give a task the key that signs images, where there is one."""
    folder = f"{KEYS_FOLDER}/signing"
    return kubernetes.use_secret_as_volume(task, secret_name=SIGNING, mount_path=folder, optional=True)


def with_trusted_keys(task: PipelineTask) -> PipelineTask:
    """Give a task the public keys of which one must have signed an image, where there are some."""
    folder = f"{KEYS_FOLDER}/trusted"
    return kubernetes.use_config_map_as_volume(task, config_map_name=TRUSTED, mount_path=folder, optional=True)


def name_gate(outcome: Any, display_name: str) -> None:
    """Name the group of branches that a `dsl.OneOf` chooses from: the dashboard would show `condition-branches-1`."""
    outcome.condition_branches_group.display_name = display_name
