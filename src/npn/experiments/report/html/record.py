"""Sections of the page of one run: its pictures, settings, environment and command."""

import base64
from html import escape

from npn.experiments.report.html.run import Run
from npn.experiments.report.html.text import section, setting, table

DRAWN_HERE = {"curves.png", "keep_probability.png", "gates.png"}  # what the page itself shows
LARGEST = 2_000_000  # bytes of a picture that is taken into the page
KINDS = {".png": "image/png", ".gif": "image/gif"}


def pictures(run: Run) -> list[str]:
    """Make the section with the pictures of the folder; none where there are none.

    Args:
        run: whose folder is read.
    """
    files = sorted(file for file in run.path.glob("*") if file.suffix in KINDS and file.name not in DRAWN_HERE)
    shown = "".join(
        f'<figure class=panel><figcaption>{escape(file.name)}</figcaption><img alt="{escape(file.stem)}" '
        f'src="data:{KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"></figure>'
        for file in files
        if file.stat().st_size <= LARGEST
    )
    return [section("pictures", "Pictures", shown)] if shown else []


def record(run: Run) -> list[str]:
    """Make the sections with settings, environment and command.

    Args:
        run: to describe.
    """
    result = run.result
    settings = [(name, setting(value)) for name, value in run.options.items()]
    environment = [
        *((name, setting(value)) for name, value in (result.get("machine") or {}).items()),
        *((name, setting(value)) for name, value in (result.get("versions") or {}).items()),
        *([("processes", setting(result["processes"]))] if "processes" in result else []),
    ]
    missing = "<p>The run records them when it ends.</p>"
    command = str(result.get("command", ""))
    text = f"<pre tabindex=0 aria-label=Command><code>{escape(command)}</code></pre>"
    copied = f"<div class=command>{text}<button type=button class=copy>Copy</button></div>"
    return [
        section("settings", "Settings", table("Settings", ("setting", "value"), settings, words=2)),
        section(
            "environment",
            "Environment",
            table("Environment", ("what", "value"), environment, words=2) if environment else missing,
        ),
        section("command", "Command", copied if command else "<p>The run records it when it ends.</p>"),
    ]
