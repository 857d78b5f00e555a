"""A page in headless Chromium: what it shows after a script of the test has clicked in it."""

import json
import shutil
import subprocess
from html import unescape

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--virtual-time-budget=20000", "--dump-dom",
]  # fmt: skip


def seen(page, script, folder):
    """What `script`, the body of an async function, returns at the end of `page`, through JSON; skips without Chromium.

    A mistake in page or script comes back as {"error": …}.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    tail = f"""<pre id="seen"></pre><script>
const tell = value => {{ document.getElementById("seen").textContent = JSON.stringify(value); }};
addEventListener("error", e => tell({{error: e.message}}));
(async () => {{ {script} }})().then(tell, e => tell({{error: String(e)}}));
</script>"""
    file = folder / "page.html"
    file.write_text(page.replace("</html>", tail + "</html>"), encoding="utf-8")
    shown = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    return json.loads(unescape(shown.rpartition('<pre id="seen">')[2].partition("</pre>")[0]))
