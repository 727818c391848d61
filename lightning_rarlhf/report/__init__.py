"""Side-by-side tables, figures and matched-KL comparisons of evaluated policies; see docs/report.md."""
