"""Figures, tables and sliders. Everything here reads records; nothing trains."""

from clearstamp.report.figures import (
    errors_figure,
    gallery_figure,
    hardening_figure,
    images_figure,
    plane_figure,
    scaling_figure,
    stages_figure,
    stamp_figure,
)
from clearstamp.report.sliders import Slider, attack_slider, hardening_slider, montage, patches_slider
from clearstamp.report.stages import pictured
from clearstamp.report.tables import (
    attacks_table,
    capacity_table,
    claims_table,
    control_table,
    cost_table,
    coverage_table,
    hardened_table,
    message_html,
    payload_table,
    provenance,
    runtime_table,
    score_table,
    steps_table,
)

__all__ = [
    "Slider",
    "attack_slider",
    "attacks_table",
    "capacity_table",
    "claims_table",
    "control_table",
    "cost_table",
    "coverage_table",
    "errors_figure",
    "gallery_figure",
    "hardened_table",
    "hardening_figure",
    "hardening_slider",
    "images_figure",
    "message_html",
    "montage",
    "patches_slider",
    "payload_table",
    "pictured",
    "plane_figure",
    "provenance",
    "runtime_table",
    "scaling_figure",
    "score_table",
    "stages_figure",
    "stamp_figure",
    "steps_table",
]
