"""A map of the validation images, coloured by class, with the mistakes marked."""

from __future__ import annotations

import numpy as np

from launcher.report.charts import Frame, padded
from launcher.report.facts import Facts
from launcher.report.formats import percent
from launcher.report.inspection import read_explanation
from launcher.report.page import Section

MOST_NAMED = 14
WIDTH, HEIGHT = 720, 440


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run that is not an explained classification."""
    contents, samples = read_explanation(facts), facts.samples
    if contents is None or samples is None or samples.kind != "classification" or len(contents.places) != len(samples):
        return None
    places = np.array([(float(row["x"]), float(row["y"])) for row in contents.places])
    x_low, x_high = padded(places[:, 0].tolist())
    y_low, y_high = padded(places[:, 1].tolist())
    frame = Frame(x_low=x_low, x_high=x_high, y_low=y_low, y_high=y_high, width=WIDTH, height=HEIGHT, left=10)
    present = [index for index in range(len(samples.classes)) if (samples.targets == index).any()]
    clouds = [
        {
            "name": samples.classes[index],
            "hue": round(360 * number / len(present) + 215) % 360,
            "path": frame.cloud([(x, y) for x, y in places[samples.targets == index].tolist()]),
        }
        for number, index in enumerate(present)
    ]
    wrong = [
        {
            "x": frame.x(float(places[index, 0])),
            "y": frame.y(float(places[index, 1])),
            "title": f"{samples.short(int(index))}: {samples.classes[int(samples.targets[index])]}, taken for "
            f"{samples.classes[int(samples.predictions[index])]}",
        }
        for index in np.flatnonzero(samples.targets != samples.predictions)[:500]
    ]
    return Section(
        "image_map",
        "Map of the validation images",
        {
            "width": WIDTH,
            "height": HEIGHT,
            "clouds": clouds,
            "named": clouds if len(clouds) <= MOST_NAMED else [],
            "wrong": wrong,
            "share": percent(contents.summary.get("variance_shown"), 0),
        },
    )
