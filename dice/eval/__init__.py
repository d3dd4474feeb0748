"""From image sets to numbers: one backbone pass, scores, metrics, tables, reports."""
