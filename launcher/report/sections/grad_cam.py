"""Grad-CAM: the regions of images that speak for the predicted class, from explanation/ (`report --explain`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

from launcher.report.facts import Facts
from launcher.report.inspection import read_explanation
from launcher.report.page import Section
from launcher.report.thumbnails import webp_uri

SIDE = 132


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run without Grad-CAM or a report without images."""
    samples, explanation = facts.samples, read_explanation(facts)
    if not facts.shows_images or samples is None or explanation is None or not explanation.attention:
        return None
    cards = [
        {
            "name": samples.names[row["sample"]],
            "short": samples.short(row["sample"]),
            "thumbnail": row["uri"],
            "truth": samples.classes[int(samples.targets[row["sample"]])],
            "prediction": samples.classes[int(samples.predictions[row["sample"]])],
        }
        for row in explanation.attention
    ]
    return Section("grad_cam", "What it looked at", {"cards": cards})


def overlay(pixels: np.ndarray[Any, Any], heat: np.ndarray[Any, Any]) -> dict[str, str]:
    """Return the image that the network sees, uint8 (S, S, 3), overlaid with its heat map (S, S), as a data URI.

    Regions that count appear in full light, the rest darkened to grey.
    """
    light = np.clip(heat, 0, 1)[..., None]
    grey = pixels.mean(axis=2, keepdims=True) * 0.45
    mixed = PIL.Image.fromarray((pixels * light + grey * (1 - light)).round().astype(np.uint8))
    mixed.thumbnail((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    return {"uri": webp_uri(mixed, 75)}
