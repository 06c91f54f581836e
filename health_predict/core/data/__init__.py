"""What an encounter is: columns, cohort, parts, outcomes, and made-up encounters."""
