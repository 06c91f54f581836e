"""Account: the credentials are those of the account that the stack is for."""

from __future__ import annotations

import pulumi


def require_account(account_id: str, region: str) -> None:
    """Raises RunError, before anything is registered, when the credentials belong to another account.

    The provider refuses them as well, also on `pulumi destroy`, but does not say what to do.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = boto3.client("sts", region_name=region).get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise pulumi.RunError(
            f"AWS does not know the credentials: {error} -> `aws configure`, or AWS_PROFILE"
        ) from None
    if found != account_id:
        raise pulumi.RunError(
            f"the credentials belong to account {found}, and health-predict:account_id is {account_id} -> use others "
            "(AWS_PROFILE), or `pulumi config set account_id` to the account that is meant"
        )
