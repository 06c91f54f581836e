"""A data contract as a page to read."""

from __future__ import annotations

from health_predict.core.data.contract import MISSING, Contract
from health_predict.report.page import render


def contract_page(contract: Contract) -> str:
    """HTML page: what is predicted, what identifies, who is excluded, and every column."""
    outcome = contract.outcome
    rule = f"{outcome.column} is {' or '.join(outcome.positive)}"
    if outcome.next:
        rule = f"{outcome.next.rule}, where rows count up to {outcome.next.within:g} later by {contract.order}"
    roles = {"encounter": contract.encounter, "patient": (contract.patient,), "order": (contract.order,)}
    described = any(column.description for column in contract.columns)
    columns = [
        (
            column.name,
            "feature"
            if column.is_feature
            else ", ".join(role for role, names in roles.items() if column.name in names),
            column.kind.value,
            column.described + (f", or {MISSING}" if column.nullable else ""),
            *([column.description] if described else []),
        )
        for column in contract.columns
    ]
    return render("contract.html", contract=contract, rule=rule, columns=columns)
