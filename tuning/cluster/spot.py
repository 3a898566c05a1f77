"""Door to ray: hears a cloud's notice that this machine is taken away, and has Ray drain its node.

``python -m tuning.cluster.spot aws --address HEAD:6379``, started on each worker beside Ray. Trials on a node that is
drained make a checkpoint and go on elsewhere (:mod:`tuning.notice`). Notices come by the clouds' metadata services: AWS
two minutes before (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html), Google
thirty seconds (https://cloud.google.com/compute/docs/instances/preemptible).
"""

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ASK_EVERY_S = 5.0
_ANSWERS_WITHIN_S = 2.0
_AWS_SESSION = "/latest/api/token"
_AWS_LIVES_S = "21600"


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """How a cloud is asked.

    Attributes:
        root: Of its metadata service, which only the machine itself reaches.
        is_leaving: Asks the service at ``root``.
        seconds: Between notice and end, at least.
    """

    root: str
    is_leaving: Callable[[str], bool]
    seconds: int


def _asked(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str | None:
    """The answer; ``None`` where there is none, or not now."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - ours
    try:
        with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN_S) as answer:  # noqa: S310 # nosec B310
            text: str = answer.read().decode("utf-8", "replace")
            return text
    except (urllib.error.URLError, OSError):
        return None


def _aws(root: str) -> bool:
    """With a session token, as IMDSv2 wants; ``instance-action`` is there once it is decided."""
    lives = {"X-aws-ec2-metadata-token-ttl-seconds": _AWS_LIVES_S}
    token = _asked(root + _AWS_SESSION, lives, method="PUT")
    if token is None:
        return False
    headers = {"X-aws-ec2-metadata-token": token}
    return _asked(root + "/latest/meta-data/spot/instance-action", headers) is not None


def _gcp(root: str) -> bool:
    said = _asked(root + "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return said is not None and said.strip() == "TRUE"


CLOUDS: Mapping[str, Cloud] = MappingProxyType(
    {
        "aws": Cloud(root="http://169.254.169.254", is_leaving=_aws, seconds=110),
        "gcp": Cloud(root="http://metadata.google.internal", is_leaving=_gcp, seconds=25),
    }
)
"""By name."""


def wait_for_notice(
    cloud: Cloud, *, root: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when the machine is to be taken away.

    Args:
        cloud: Whose it is.
        root: Of another metadata service.
        sleep: Waits between two questions.
    """
    while not cloud.is_leaving(root or cloud.root):
        sleep(_ASK_EVERY_S)


def drain(address: str, node: str, *, seconds: int) -> None:
    """Tell the cluster that a node is taken away.

    Args:
        address: Of the cluster.
        node: As Ray calls it.
        seconds: Until then.

    Raises:
        subprocess.CalledProcessError: If the cluster does not take it.
    """
    said = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a cloud's notice")
    which = ("--address", address, "--node-id", node, "--deadline-remaining-seconds", str(seconds))
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *which, *said]
    subprocess.run(command, check=True)


def _own_node(address: str) -> str:
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        return str(ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


def main() -> None:
    """Wait for the notice, drain this node, and end."""
    parser = argparse.ArgumentParser(prog="python -m tuning.cluster.spot", description=__doc__)
    parser.add_argument("cloud", choices=sorted(CLOUDS))
    parser.add_argument("--address", required=True, help="of the cluster: HEAD:6379")
    given = parser.parse_args()
    cloud = CLOUDS[given.cloud]
    wait_for_notice(cloud)
    drain(given.address, _own_node(given.address), seconds=cloud.seconds)


if __name__ == "__main__":
    main()
