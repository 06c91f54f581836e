"""A table of its own with a file of its synthetic cohort, each in few lines."""

from __future__ import annotations

CONTRACT = """\
name: wards
title: Unplanned returns
encounter: [stay]
patient: person
order: stay
outcome: {column: returned, levels: ["no", "yes"], positive: ["yes"], negative: "no"}
exclude:
  - {column: left, levels: [died], reason: died}
single_predictor: earlier
synthetic: wards.synthetic.yaml
columns:
  stay: {kind: identifier, numeric: true}
  person: {kind: identifier}
  cause: {kind: code, system: icd10cm, nullable: true}
  albumin: {kind: number, minimum: 1, maximum: 6, unit: g/dL, nullable: true}
  earlier: {kind: count, maximum: 3}
  left: {kind: level, levels: [home, died]}
  smoker: {kind: flag, levels: [n, y]}
"""
FILE = """\
rows: 50
patients:
  rows_per_day: 5
  shortest_days: 300
  burn_in_days: 0
  history: {column: earlier, outside: 0.5}
  seen_again: 0.9
soon: {intercept: -1, strength: 1, days: [1, 20]}
effects:
  albumin: {each: -1, from: 3}
  earlier: {steps: [0, 2]}
  cause: {chapters: {circulatory: 1}}
columns:
  cause: {I50.9: 5, E1165: 5, "?": 1}
  albumin: {1.5: 1, 3: 4, 4.25: 2, "?": 1}
  earlier: {0: 6, 1: 2, 2: 1}
  left: {home: 9, died: 1}
  smoker: {n: 3, y: 1}
factors:
  health: {albumin: -0.4, earlier: 0.4}
scenarios:
  icd-recoding:
    recoded: {circulatory: R09}
"""
