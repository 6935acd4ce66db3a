"""Install a built wheel with its dependencies into an empty environment, and run `cardiodit demo` there.

    python benchmarks/release.py dist

`make release` calls it. Downloads what the wheel requires, so it needs a package index, and minutes.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        venv.create(Path(folder) / "env", with_pip=True)
        bin = Path(folder) / "env" / ("Scripts" if os.name == "nt" else "bin")
        pip = [str(bin / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, str(wheel)], check=True)
        installed = time.monotonic()
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "HF_HUB_OFFLINE": "1"}
        demo = [str(bin / "cardiodit"), "demo", "--output_dir", "out"]
        subprocess.run(demo, cwd=folder, env=environment, check=True)
        done = time.monotonic()
        pages = [path.name for path in (Path(folder) / "out").iterdir()]
        assert {"hearts.html", "hearts.gif", "samples"} <= set(pages), pages
        print(f"{wheel.name}: installed in {installed - began:.0f} s, demo in {done - installed:.0f} s.")


if __name__ == "__main__":
    main()
