"""R13: mixed load for a long time. Memory and descriptors must not grow, greenlets not stall."""

from __future__ import annotations

from .children import Child
from .row import Row, Run

TITLE = "mixed load"
_MAX_SLOPE = 1 << 20  # bytes a minute
_MAX_STALL_S = 0.050
# What comes and goes may be open at the moment of a sample.
_DESCRIPTORS_SPARE = 6
# The first part of the time, in which caches fill up.
_WARM_UP = 0.3
# A slope over less time says nothing.
_JUDGED_FROM_S = 120
_PATIENCE_S = 120.0


def run(run: Run) -> Row:
    """Watch a process under load for some seconds or for ten minutes."""
    row = Row("R13", TITLE)
    seconds = run.either(60, 600)
    with Child("soak", run.directory, data_dir=run.directory / "data", seconds=seconds) as child:
        child.wait_done(seconds + _PATIENCE_S)
        said = [line.split() for line in child.new_lines()]
    samples = [[int(word) for word in words] for what, *words in said if what == "sample"]
    stalls = next([float(word) for word in words] for what, *words in said if what == "stalls")
    lost, published = next([int(word) for word in words] for what, *words in said if what == "lost")
    samples = samples[int(len(samples) * _WARM_UP) :]
    half = len(samples) // 2
    fds = [fds for _, fds in samples]
    slope = _slope_per_minute([rss for rss, _ in samples])
    row.note(
        seconds=seconds,
        published=published,
        lost=lost,
        rss_mib=samples[-1][0] / (1 << 20),
        rss_slope_mib_per_min=slope / (1 << 20),
        descriptors=max(fds),
        stall_p50_s=stalls[0],
        stall_p999_s=stalls[1],
        stall_max_s=stalls[2],
    )
    row.expect(not lost, f"{lost} of {published} messages were not delivered")
    row.expect(
        max(fds[half:]) <= max(fds[:half], default=0) + _DESCRIPTORS_SPARE,
        f"descriptors grew from {max(fds[:half], default=0)} to {max(fds[half:])}",
    )
    row.expect(stalls[1] < _MAX_STALL_S, f"greenlets stalled for {stalls[1]:.3f} s (p99.9)")
    if seconds >= _JUDGED_FROM_S:
        row.expect(slope < _MAX_SLOPE, f"memory grows by {slope / (1 << 20):.2f} MiB a minute")
    return row


def _slope_per_minute(values: list[int]) -> float:
    """Return the slope of the line that fits values taken every second."""
    mean_x, mean_y = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values))
    below = sum((x - mean_x) ** 2 for x in range(len(values)))
    return 60 * above / below if below else 0.0
