"""A home that was expensive to make, copied for a test that writes in it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path


def copied(home: Path, to: Path) -> Path:
    """A copy that stands alone: what MLflow's database names as folders of artifacts are its own."""
    shutil.copytree(home, to)
    with closing(sqlite3.connect(to / "mlflow.db")) as database, database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                    database.execute(change, (f"{home}/", f"{to}/", f"{home}/"))
    return to
