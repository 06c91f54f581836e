"""The smallest pipeline: one task that says what it was told."""

from kfp import dsl


@dsl.component(base_image="python", install_kfp_package=False)
def echo(words: str) -> str:
    """Say what was said."""
    return words


@dsl.pipeline
def says(words: str) -> str:
    """One task."""
    return echo(words=words).output
