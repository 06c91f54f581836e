"""The report of a rollout: what was done, in which order, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from health_predict.report.page import number, render

_WORDS = {
    "deployed": ("Deployed", "good"),
    "unchanged": ("Unchanged", "good"),
    "undone": ("Undone", "bad"),
}


def rollout_page(
    *,
    outcome: str,
    reasons: Sequence[str],
    url: str,
    steps: Sequence[tuple[str, bool, float, str]],
    version: str,
    tags: Mapping[str, str],
    image_uri: str,
    before: str,
) -> str:
    """HTML page of a rollout; `steps` are name, whether it passed, seconds, detail."""
    word, tone = _WORDS[outcome]
    return render(
        "rollout.html",
        title=f"Rollout of model version {version}",
        subtitle=f"{word}: {reasons[0]}" if reasons else word,
        facts=[
            ("Family", tags.get("family", "")),
            ("Run", tags.get("run_id", "")),
            ("Dataset", tags.get("dataset_digest", "")[:12]),
            ("Commit", tags.get("git_commit", "")[:12]),
        ],
        synthetic=tags.get("dataset_source") == "synthetic",
        word=word,
        tone=tone,
        summary="Everything is as it was before." if outcome == "undone" else f"The endpoint answers at {url}.",
        reasons=list(reasons),
        steps=[
            [name, "passed" if passed else "failed", number(seconds, 2), detail]
            for name, passed, seconds, detail in steps
        ],
        chain=[
            ["Served before", before],
            ["Image", image_uri],
            ["Bento", tags.get("bento_tag", "")],
            ["Bento digest", tags.get("bento_digest", "")],
            ["Model version", version],
            ["MLflow run", tags.get("run_id", "")],
            ["Dataset digest", tags.get("dataset_digest", "")],
            ["Git commit", tags.get("git_commit", "")],
        ],
    )
