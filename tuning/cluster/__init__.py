"""Files that describe a cluster: told apart, checked before any machine is started, and used by the verbs.

Three kinds: the YAML of Ray's own launcher, a batch script of Slurm, a RayJob of Kubernetes. Nothing here touches
the network, and Ray is imported only when a file of its launcher is checked.
"""

from tuning.cluster.kinds import described, is_cluster_file, is_script, validate_cluster_file

__all__ = ["described", "is_cluster_file", "is_script", "validate_cluster_file"]
