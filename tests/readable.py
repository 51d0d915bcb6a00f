"""What a figure has to have to be read: no window is opened, its texts and marks are measured."""

from itertools import combinations

import numpy as np


def readable(figure):
    """Axes have labels, no two texts overlap, no letter is below 8 points, entries of a legend differ without colour,
    and markers that stand alone do not hide each other."""
    for axes in figure.findobj(lambda artist: type(artist).__name__ == "Axes"):
        for axis in (axes.xaxis, axes.yaxis):
            shows_numbers = any(label.get_text() and label.get_visible() for label in axis.get_ticklabels())
            assert not shows_numbers or label_of(axis), (axes.get_title(), axis.axis_name)
        handles, _ = axes.get_legend_handles_labels()
        looks = [look(handle) for handle in handles if hasattr(handle, "get_linestyle")]
        assert len(set(looks)) == len(looks), (axes.get_title(), looks)
        places = [
            axes.transData.transform(np.column_stack(line.get_data())) * 72 / figure.dpi
            for line in axes.lines
            if line in handles and line.get_linestyle() == "None" and len(line.get_xdata())
        ]
        for one, other in combinations(places, 2):
            assert np.linalg.norm(one[:, None] - other, axis=2).min() > 4, axes.get_title()
    beyond = {id(label) for axes in figure.findobj(lambda a: hasattr(a, "get_xaxis")) for label in not_drawn(axes)}
    texts = [text for text in figure.findobj(lambda a: hasattr(a, "get_fontsize")) if id(text) not in beyond]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 8
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for (a, one), (b, other) in combinations(boxes, 2):
        shared = one.intersection(one, other)
        assert shared is None or min(shared.width, shared.height) < 1, (a, b)


def label_of(axis):
    """The axis' label, or of axes that share it, the one at the edge."""
    shared = getattr(axis.axes, f"get_shared_{axis.axis_name}_axes")().get_siblings(axis.axes)
    return axis.get_label_text() or any(getattr(other, f"get_{axis.axis_name}label")() for other in shared)


def look(handle):
    """What is left of a line in grey."""
    return str(handle.get_linestyle()), str(handle.get_marker()), handle.get_linewidth() > 2


def not_drawn(axes):
    """Labels of hidden axes, and of ticks outside the view."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not (axis.get_visible() and low <= tick.get_loc() <= high):
                yield tick.label1
