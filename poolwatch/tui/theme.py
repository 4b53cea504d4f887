"""The colours: a quiet ground, one accent, and two that mean trouble."""

from __future__ import annotations

from textual.theme import Theme

THEME = Theme(
    name="poolwatch",
    primary="#6cb6ff",
    secondary="#4a7fb5",
    accent="#6cb6ff",
    warning="#e8b04b",
    error="#ff7a72",
    success="#74c991",
    foreground="#dce3ea",
    background="#10151b",
    surface="#161d25",
    panel="#243140",
    dark=True,
)
"""Used unless another theme is asked for with TEXTUAL_THEME."""
