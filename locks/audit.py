"""Ask for known weaknesses of the locked packages, and say how many could be asked for: ``python locks/audit.py``.

Ends with 1 if there is one. Where no database answers, as without a network, that is said, and ends with 0: then
nothing is known, which is not the same as that there is none.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
LOCKS: Final = ("linux.txt", "cuda.txt")


def main() -> None:
    """Ask, and say what was found."""
    locks = [option for name in LOCKS for option in ("-r", str(HERE / name))]
    options = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", *locks, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.stdout.write(f"audit: no database of weaknesses answered ({last}); nothing is known\n")
        return
    asked = [package for package in found if "skip_reason" not in package]
    weak = [package for package in asked if package["vulns"]]
    for package in weak:
        for one in package["vulns"]:
            better = ", ".join(one["fix_versions"]) or "no version yet"
            sys.stdout.write(
                f"{package['name']} {package['version']}: {one['id']}; mended in {better}\n"
            )
    if asked:
        sys.stdout.write(f"audit: {len(weak)} of {len(asked)} packages have known weaknesses\n")
    if len(asked) < len(found):
        sys.stdout.write(
            f"audit: nothing is known of {len(found) - len(asked)}: no database answered for them\n"
        )
    sys.exit(1 if weak else 0)


if __name__ == "__main__":
    main()
