"""What pinfold costs, as ratios inside one interleaved run: `python -m bench`. See docs/performance.md."""
