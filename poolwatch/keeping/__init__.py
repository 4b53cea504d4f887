"""How :mod:`poolwatch.keepers` finds out: references, roots, the walk, the words."""
